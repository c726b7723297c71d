//! emoji
