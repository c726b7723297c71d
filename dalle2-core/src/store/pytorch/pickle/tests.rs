use super::*;

fn read(bytes: &[u8]) -> Result<Pickle, String> {
    Pickle::read(bytes)
}

#[test]
fn integers_of_every_width_are_read() {
    for (bytes, expected) in [
        (&b"K\x07."[..], 7),
        (b"M\x01\x02.", 513),
        (b"J\xff\xff\xff\xff.", -1),
        (b"\x8a\x00.", 0),
        (b"\x8a\x02\x00\x80.", -32768),
        (b"\x8b\x03\x00\x00\x00\x01\x00\x01.", 65537),
    ] {
        let pickle = read(bytes).unwrap();
        assert_eq!(pickle.value(pickle.root), &Value::Int(expected), "{bytes:?}");
        assert_eq!(pickle.length, bytes.len());
    }
}

#[test]
fn calls_make_opaque_values() {
    // os.system("x"), then a state for what it returned.
    let pickle = read(b"cos\nsystem\nX\x01\x00\x00\x00x\x85R}X\x01\x00\x00\x00aK\x01sb.").unwrap();
    assert_eq!(pickle.class(pickle.root).as_deref(), Some("os.system"));
    let value = pickle.get(pickle.root, "a").unwrap();
    assert_eq!(pickle.value(value), &Value::Int(1));
}

#[test]
fn broken_programs_are_errors_that_name_the_byte() {
    for (bytes, expected) in [
        (&b""[..], "after the end"),
        (b"K", "after the end"),
        (b".", "empty stack"),
        (b"X\xff\xff\xff\xffabc.", "4294967295 bytes"),
        (b"h\x05.", "never stored"),
        (b"(K\x01u.", "without a value"),
        (b"K\x01K\x02s.", "empty stack"),
        (b"K\x01K\x02K\x03s.", "not a dictionary"),
        (b"e.", "no start"),
        (b"i", "0x69"),
        (b"cos\n", "without an end"),
    ] {
        let error = read(bytes).unwrap_err();
        assert!(error.contains(expected), "{bytes:?}: {error}");
    }
}

/// Twenty doublings of a tuple are a million leaves to whoever walks them, and 40 values here.
#[test]
fn values_that_repeat_take_no_memory() {
    let mut bytes = b"K\x01q\x00".to_vec();
    for _ in 0..20 {
        bytes.extend(b"h\x00h\x00\x86q\x00");
    }
    bytes.push(b'.');
    let pickle = read(&bytes).unwrap();
    assert_eq!(pickle.values.len(), 21);
    // And a list may hold itself.
    let pickle = read(b"]q\x00h\x00a.").unwrap();
    assert_eq!(pickle.value(pickle.root), &Value::List(vec![pickle.root]));
}
