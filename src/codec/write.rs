//! Appends msgpack tokens in their shortest form.

/// Appends nil.
#[inline]
pub fn nil(out: &mut Vec<u8>) {
    out.push(0xc0);
}

/// Appends a truth value.
#[inline]
pub fn bool(out: &mut Vec<u8>, value: bool) {
    out.push(0xc2 | u8::from(value));
}

/// Appends an integer from zero up.
#[inline]
pub fn uint(out: &mut Vec<u8>, value: u64) {
    if let Ok(value) = u8::try_from(value) {
        if value < 0x80 {
            out.push(value);
        } else {
            out.extend_from_slice(&[0xcc, value]);
        }
    } else if let Ok(value) = u16::try_from(value) {
        marked(out, 0xcd, value.to_be_bytes());
    } else if let Ok(value) = u32::try_from(value) {
        marked(out, 0xce, value.to_be_bytes());
    } else {
        marked(out, 0xcf, value.to_be_bytes());
    }
}

/// Appends an integer.
#[inline]
pub fn int(out: &mut Vec<u8>, value: i64) {
    if let Ok(value) = u64::try_from(value) {
        uint(out, value);
    } else if let Ok(value) = i8::try_from(value) {
        if value >= -32 {
            marked(out, value.to_be_bytes()[0], []);
        } else {
            marked(out, 0xd0, value.to_be_bytes());
        }
    } else if let Ok(value) = i16::try_from(value) {
        marked(out, 0xd1, value.to_be_bytes());
    } else if let Ok(value) = i32::try_from(value) {
        marked(out, 0xd2, value.to_be_bytes());
    } else {
        marked(out, 0xd3, value.to_be_bytes());
    }
}

/// Appends a float, always as 64 bits.
#[inline]
pub fn float(out: &mut Vec<u8>, value: f64) {
    marked(out, 0xcb, value.to_be_bytes());
}

/// Appends text. A text longer than 4 GiB is beyond every limit and is cut by the caller's checks.
#[inline]
pub fn str(out: &mut Vec<u8>, text: &str) {
    match u8::try_from(text.len()) {
        Ok(length) if length < 32 => out.push(0xa0 | length),
        _ => sized(out, text.len(), [0xd9, 0xda, 0xdb]),
    }
    out.extend_from_slice(text.as_bytes());
}

/// Appends bytes.
#[inline]
pub fn bin(out: &mut Vec<u8>, bytes: &[u8]) {
    sized(out, bytes.len(), [0xc4, 0xc5, 0xc6]);
    out.extend_from_slice(bytes);
}

/// Appends the header of an array; its items follow.
#[inline]
pub fn array(out: &mut Vec<u8>, count: usize) {
    container(out, count, 0x90, [0xdc, 0xdd]);
}

/// Appends the header of a map; its entries follow, key then value.
#[inline]
pub fn map(out: &mut Vec<u8>, count: usize) {
    container(out, count, 0x80, [0xde, 0xdf]);
}

/// Appends the header of an extension; its body follows.
#[inline]
pub fn ext(out: &mut Vec<u8>, code: i8, length: usize) {
    match length {
        1 => out.push(0xd4),
        2 => out.push(0xd5),
        4 => out.push(0xd6),
        8 => out.push(0xd7),
        16 => out.push(0xd8),
        _ => sized(out, length, [0xc7, 0xc8, 0xc9]),
    }
    out.push(code.to_be_bytes()[0]);
}

/// Returns how many bytes the header of a container takes.
#[must_use]
pub const fn container_header(count: usize) -> usize {
    match count {
        0..=15 => 1,
        16..=0xffff => 3,
        _ => 5,
    }
}

fn marked<const N: usize>(out: &mut Vec<u8>, marker: u8, body: [u8; N]) {
    out.push(marker);
    out.extend_from_slice(&body);
}

fn container(out: &mut Vec<u8>, count: usize, fixed: u8, markers: [u8; 2]) {
    match u8::try_from(count) {
        Ok(count) if count < 16 => out.push(fixed | count),
        _ => match u16::try_from(count) {
            Ok(count) => marked(out, markers[0], count.to_be_bytes()),
            Err(_) => marked(out, markers[1], saturated(count).to_be_bytes()),
        },
    }
}

fn sized(out: &mut Vec<u8>, length: usize, markers: [u8; 3]) {
    if let Ok(length) = u8::try_from(length) {
        out.extend_from_slice(&[markers[0], length]);
    } else if let Ok(length) = u16::try_from(length) {
        marked(out, markers[1], length.to_be_bytes());
    } else {
        marked(out, markers[2], saturated(length).to_be_bytes());
    }
}

/// Msgpack ends at 4 GiB; message limits are far below, so nothing longer is ever sent.
fn saturated(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
