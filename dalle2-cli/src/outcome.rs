//! Exit codes and error messages: one line that starts with `error:`, with a hint where there is one.

use std::fmt;
use std::process::ExitCode;

use anyhow::{Error, Result};

/// Exit code of a command that was used wrongly; clap's own.
const USAGE: u8 = 2;
/// Exit code after an interruption: 128 plus the number of SIGINT.
pub const INTERRUPTED: u8 = 130;

/// Arguments that parse, and that no run can carry out.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Fails with a [`Usage`] error unless the condition holds.
macro_rules! check_usage {
    ($condition:expr, $($message:tt)+) => {
        let holds: bool = $condition;
        if !holds {
            return Err($crate::outcome::Usage(format!($($message)+)).into());
        }
    };
}
pub(crate) use check_usage;

/// Prints the error of a command and gives its exit code.
pub fn report(result: Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    let code = code(&error);
    if code == INTERRUPTED {
        eprintln!("interrupted");
    } else {
        eprintln!("{}", line(&error));
    }
    ExitCode::from(code)
}

fn code(error: &Error) -> u8 {
    if error.is::<Usage>() {
        return USAGE;
    }
    match error.downcast_ref() {
        Some(dalle2::Error::Cancelled) => INTERRUPTED,
        _ => 1,
    }
}

/// The message, on one line.
fn line(error: &Error) -> String {
    let message = format!("{error:#}").lines().map(str::trim).collect::<Vec<_>>().join("; ");
    match hint(error) {
        Some(hint) => format!("error: {message} (hint: {hint})"),
        None => format!("error: {message}"),
    }
}

/// A suggestion for common causes.
fn hint(error: &Error) -> Option<&'static str> {
    if error.is::<Usage>() {
        return Some("--help lists the options");
    }
    let text = format!("{error:#}");
    let not_a_pipeline = matches!(error.downcast_ref(), Some(dalle2::Error::NotAPipeline { .. }));
    if not_a_pipeline || text.contains("model_index.json") {
        return Some("--model names a pipeline directory, such as models/emoji or runs/tiny/export");
    }
    match error.downcast_ref()? {
        dalle2::Error::Hub { .. } => Some("--model loads a local directory without the network"),
        dalle2::Error::Device(_) => Some("--device default chooses one that is available"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_tell_usage_interruption_and_failure_apart() {
        let usage = || Error::from(Usage("--num-images 0: at least 1".into()));
        assert_eq!(code(&usage()), 2);
        assert_eq!(code(&usage().context("generate")), 2);
        assert_eq!(code(&dalle2::Error::Cancelled.into()), 130);
        assert_eq!(code(&anyhow::anyhow!("no space left")), 1);
    }

    #[test]
    fn a_message_of_several_lines_becomes_one() {
        assert_eq!(line(&anyhow::anyhow!("two tensors:\n  a\n  b")), "error: two tensors:; a; b");
        assert!(line(&Usage("--size 3".into()).into()).contains("(hint: --help"));
    }
}
