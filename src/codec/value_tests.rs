//! Tests of the structural validation.
#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;

fn check(bytes: &[u8]) -> Result<()> {
    validate(bytes, &Limits::default())
}

fn nested_ext(levels: usize) -> Vec<u8> {
    let mut value = vec![0xc0];
    for _ in 0..levels {
        let mut outer = Vec::new();
        super::super::write::ext(&mut outer, ext::TUPLE, value.len() + 1);
        outer.push(0x91);
        outer.extend_from_slice(&value);
        value = outer;
    }
    value
}

#[test]
fn well_formed_values_pass() {
    let values: [&[u8]; 12] = [
        b"\xc0",
        b"\x93\x01\xff\xcb\0\0\0\0\0\0\0\0",
        b"\x82\xa1a\x01\xd4\x01\x05\xc4\x01x",
        b"\xd5\x02\x91\xc0",
        b"\xd4\x03\x90",
        b"\xc7\x08\x05\0\0\0\0\0\0\0\0",
        b"\xd8\x08AAAABBBBCCCCDDDD",
        b"\xc7\x04\x091E+5",
        b"\xc7\x03\x0a\xed\xa0\x80",
        b"\xd6\x06\0\0\0\0",
        b"\xd8\x07\0\0\0\0\0\0\0\x01\0\0\0\x02\0\0\0\x03",
        b"\x81\xd4\x02\x90\xc0",
    ];
    for value in values {
        check(value).unwrap_or_else(|error| panic!("{value:02x?}: {error}"));
    }
}

#[test]
fn malformed_values_are_refused() {
    let values: [&[u8]; 26] = [
        b"",
        b"\xc1",
        b"\xc0\xc0",
        b"\x91",
        b"\x81\x01",
        b"\xa2a",
        b"\xa1\xff",
        b"\xdd\xff\xff\xff\xff\xc0\xc0\xc0\xc0\xc0",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xffx",
        b"\xdb\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\xc7\x00\x01",
        b"\xd4\x02\xc0",
        b"\xd5\x02\x90\xc0",
        b"\xd4\x02\x91\xc0",
        b"\xd5\x02\x92\xc0\xc0",
        b"\xd4\x05\x00",
        b"\xd7\x05\x7f\xff\xff\xff\xff\xff\xff\xff",
        b"\xd4\x63\x00",
        b"\xc7\x03\x091e5",
        b"\xc7\x06\x0a\xed\xa0\xbd\xed\xb8\x80",
        b"\x81\x90\xc0",
        b"\x81\xd4\x03\x90\xc0",
        b"\xd6\x06\x7f\xff\xff\xff",
        b"\xd8\x07\0\0\0\0\0\0\0\x01\0\0\0\x02\x7f\0\0\x03",
    ];
    for value in values {
        let error = check(value).err();
        assert!(
            matches!(error, Some(Error::Decode { .. } | Error::TooLarge { .. })),
            "{value:02x?}: {error:?}"
        );
    }
}

#[test]
fn limits_hold_for_bytes_depth_and_elements() {
    let limits = Limits { max_bytes: 200, max_depth: 3, max_elements: 10 };
    let is_too_large =
        |bytes: &[u8]| matches!(validate(bytes, &limits), Err(Error::TooLarge { .. }));
    assert!(!is_too_large(b"\x91\x91\x90") && is_too_large(b"\x91\x91\x91\x90"));
    assert!(validate(&nested_ext(3), &limits).is_ok() && is_too_large(&nested_ext(4)));
    let ten = [&[0x9a][..], &[0xc0; 10]].concat();
    assert!(validate(&ten, &limits).is_ok());
    assert!(is_too_large(&[&[0x92][..], &ten, &[0xc0]].concat()));
    assert!(is_too_large(&[0; 201]));
}

#[test]
fn deeply_nested_extensions_are_refused_quickly_and_without_overflow() {
    let limits = Limits { max_depth: usize::MAX, ..Limits::default() };
    assert!(validate(&nested_ext(Limits::DEEPEST), &limits).is_ok());
    let error = validate(&nested_ext(20_000), &limits);
    assert!(matches!(error, Err(Error::TooLarge { what: "nesting depth", .. })));
    assert!(check(&[0x91; 5_000]).is_err());
}
