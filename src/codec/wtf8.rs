//! WTF-8: UTF-8 that may hold lone surrogates, as Python's text does.

/// Whether `bytes` are well-formed: UTF-8 plus surrogates of which no two form a pair.
pub(crate) fn is_valid(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    let mut after_high = false;
    loop {
        let (valid, invalid) = match std::str::from_utf8(rest) {
            Ok(_) => return true,
            Err(error) => rest.split_at(error.valid_up_to()),
        };
        let Some((code, after)) = split_surrogate(invalid) else { return false };
        let low = code >= 0xdc00;
        if low && after_high && valid.is_empty() {
            return false;
        }
        after_high = !low;
        rest = after;
    }
}

/// Splits a surrogate off the beginning.
fn split_surrogate(bytes: &[u8]) -> Option<(u16, &[u8])> {
    match bytes {
        [0xed, second @ 0xa0..=0xbf, third @ 0x80..=0xbf, rest @ ..] => {
            let code = 0xd000 | u16::from(second & 0x3f) << 6 | u16::from(third & 0x3f);
            Some((code, rest))
        }
        _ => None,
    }
}

/// Appends a surrogate or any other code unit of the basic plane.
pub(crate) fn push_unit(out: &mut Vec<u8>, unit: u16) {
    if let Some(c) = char::from_u32(unit.into()) {
        push_char(out, c);
        return;
    }
    let [high, low] = unit.to_be_bytes();
    out.extend_from_slice(&[0xed, 0x80 | (high & 0x0f) << 2 | low >> 6, 0x80 | low & 0x3f]);
}

/// Appends a character.
pub(crate) fn push_char(out: &mut Vec<u8>, c: char) {
    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

/// Calls `text` for runs of UTF-8 and `surrogate` for what lies between, in order. What is neither
/// (it was refused when it was validated) ends it.
pub(crate) fn for_each_part(bytes: &[u8], mut part: impl FnMut(Part<'_>)) {
    let mut rest = bytes;
    while !rest.is_empty() {
        match std::str::from_utf8(rest) {
            Ok(text) => {
                part(Part::Text(text));
                return;
            }
            Err(error) => {
                let (valid, invalid) = rest.split_at(error.valid_up_to());
                part(Part::Text(std::str::from_utf8(valid).unwrap_or_default()));
                let Some((code, after)) = split_surrogate(invalid) else { return };
                part(Part::Surrogate(code));
                rest = after;
            }
        }
    }
}

/// A part of WTF-8.
pub(crate) enum Part<'a> {
    /// UTF-8.
    Text(&'a str),
    /// A lone surrogate.
    Surrogate(u16),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lone_surrogates_are_valid_and_pairs_are_not() {
        let mut high = Vec::new();
        push_unit(&mut high, 0xd83d);
        let mut low = Vec::new();
        push_unit(&mut low, 0xde00);
        assert_eq!((high.as_slice(), low.as_slice()), (&b"\xed\xa0\xbd"[..], &b"\xed\xb8\x80"[..]));
        assert!(is_valid(&high) && is_valid(&low) && is_valid(b"abc"));
        assert!(is_valid(&[&low[..], &high[..]].concat()));
        assert!(is_valid(&[&high[..], b"x", &low[..]].concat()));
        assert!(!is_valid(&[&high[..], &low[..]].concat()));
        assert!(!is_valid(&[&high[..], &high[..], &low[..]].concat()));
        assert!(!is_valid(b"\xed\xa0") && !is_valid(b"\xff") && !is_valid(b"a\xc3"));
    }
}
