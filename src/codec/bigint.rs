//! Integers beyond 64 bits: two's complement, little endian ⇄ decimal text.

/// Most digits Python converts by default; more is a `ValueError` there.
pub(crate) const MAX_DIGITS: usize = 4_300;

/// More bytes than a number of [`MAX_DIGITS`] digits can have.
const MAX_BYTES: usize = 1_800;

const CHUNK: u64 = 1_000_000_000;
const CHUNK_DIGITS: usize = 9;

/// Writes a number as decimal text; `None` when it has too many digits.
pub(crate) fn to_decimal(body: &[u8]) -> Option<String> {
    let negative = body.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut significant = body;
    let padding = if negative { 0xff } else { 0 };
    while let [rest @ .., last] = significant
        && *last == padding
    {
        significant = rest;
    }
    if significant.len() > MAX_BYTES {
        return None;
    }
    let mut limbs: Vec<u32> = significant
        .chunks(4)
        .map(|chunk| {
            let mut bytes = [padding; 4];
            bytes[..chunk.len()].copy_from_slice(chunk);
            u32::from_le_bytes(bytes)
        })
        .collect();
    if negative {
        negate(&mut limbs);
    }
    let text = magnitude_text(limbs);
    (text.len() <= MAX_DIGITS).then(|| if negative { format!("-{text}") } else { text })
}

/// Turns the two's complement of a negative number into its magnitude.
fn negate(limbs: &mut Vec<u32>) {
    let mut carry = true;
    for limb in limbs.iter_mut() {
        let (sum, over) = (!*limb).overflowing_add(u32::from(carry));
        *limb = sum;
        carry = over;
    }
    if carry {
        limbs.push(1);
    }
}

fn magnitude_text(mut limbs: Vec<u32>) -> String {
    let mut chunks = Vec::new();
    while limbs.last() == Some(&0) {
        limbs.pop();
    }
    while !limbs.is_empty() {
        let mut remainder = 0;
        for limb in limbs.iter_mut().rev() {
            let value = (remainder << 32) | u64::from(*limb);
            remainder = value % CHUNK;
            // The quotient of a value below CHUNK << 32 fits into 32 bits.
            *limb = low(value / CHUNK);
        }
        chunks.push(remainder);
        while limbs.last() == Some(&0) {
            limbs.pop();
        }
    }
    let mut text = chunks.pop().unwrap_or(0).to_string();
    for chunk in chunks.into_iter().rev() {
        text.push_str(&format!("{chunk:0width$}", width = CHUNK_DIGITS));
    }
    text
}

/// Reads decimal digits (ASCII, at most [`MAX_DIGITS`]) into the shortest two's complement.
pub(crate) fn from_decimal(negative: bool, digits: &[u8]) -> Vec<u8> {
    let mut limbs: Vec<u32> = Vec::with_capacity(digits.len() / CHUNK_DIGITS + 1);
    let (first, rest) = digits.split_at(digits.len() % CHUNK_DIGITS);
    for chunk in std::iter::once(first).chain(rest.chunks(CHUNK_DIGITS)) {
        let mut carry = chunk.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
        let factor = 10_u64.pow(u32::try_from(chunk.len()).unwrap_or(0));
        for limb in &mut limbs {
            let value = u64::from(*limb) * factor + carry;
            *limb = low(value);
            carry = value >> 32;
        }
        if carry > 0 {
            limbs.push(low(carry));
        }
    }
    let mut bytes: Vec<u8> = limbs.iter().flat_map(|limb| limb.to_le_bytes()).collect();
    bytes.push(0);
    if negative {
        let mut carry = true;
        for byte in &mut bytes {
            let (sum, over) = (!*byte).overflowing_add(u8::from(carry));
            *byte = sum;
            carry = over;
        }
    }
    shorten(&mut bytes);
    bytes
}

/// Drops the bytes at the end that only repeat the sign.
fn shorten(bytes: &mut Vec<u8>) {
    while let [.., before, last] = bytes.as_slice()
        && ((*last == 0 && before & 0x80 == 0) || (*last == 0xff && before & 0x80 != 0))
    {
        bytes.pop();
    }
}

#[allow(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
fn low(value: u64) -> u32 {
    value as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_agree_with_python() {
        let cases: [(&str, &[u8]); 9] = [
            ("18446744073709551616", &[0, 0, 0, 0, 0, 0, 0, 0, 1]),
            ("-9223372036854775809", &[255, 255, 255, 255, 255, 255, 255, 127, 255]),
            ("-18446744073709551616", &[0, 0, 0, 0, 0, 0, 0, 0, 255]),
            ("1180591620717411303424", &[0, 0, 0, 0, 0, 0, 0, 0, 64]),
            ("0", &[0]),
            ("-1", &[255]),
            ("127", &[127]),
            ("128", &[128, 0]),
            ("-128", &[128]),
        ];
        for (text, bytes) in cases {
            let digits = text.trim_start_matches('-');
            assert_eq!(from_decimal(text.starts_with('-'), digits.as_bytes()), bytes, "{text}");
            assert_eq!(to_decimal(bytes).as_deref(), Some(text));
        }
    }

    #[test]
    fn the_limit_is_4300_digits() {
        for negative in [false, true] {
            let bytes = from_decimal(negative, &[b'9'; MAX_DIGITS]);
            let text = to_decimal(&bytes).unwrap_or_default();
            assert_eq!(text.trim_start_matches('-'), "9".repeat(MAX_DIGITS));
            let mut more = vec![b'0'; MAX_DIGITS + 1];
            more[0] = b'1';
            assert_eq!(to_decimal(&from_decimal(negative, &more)), None);
        }
        assert_eq!(to_decimal(&vec![1; 1 << 20]), None);
        assert_eq!(to_decimal(&vec![0xff; 1 << 20]).as_deref(), Some("-1"));
    }
}
