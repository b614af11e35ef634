//! Numbers as CPython's `repr` writes them.

use std::io::Write;

/// Appends an integer from zero up.
pub(super) fn write_uint(out: &mut Vec<u8>, mut value: u64) {
    let mut buffer = [0; 20];
    let mut start = buffer.len();
    for place in buffer.iter_mut().rev() {
        // A remainder of 10 always fits.
        *place = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
        start -= 1;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(buffer.get(start..).unwrap_or_default());
}

/// Appends an integer.
pub(super) fn write_int(out: &mut Vec<u8>, value: i64) {
    if value < 0 {
        out.push(b'-');
    }
    write_uint(out, value.unsigned_abs());
}

/// Appends a float as `float.__repr__` does; what is not finite as JSON's bare tokens.
pub(super) fn write_float(out: &mut Vec<u8>, value: f64) {
    if value.is_nan() {
        out.extend_from_slice(b"NaN");
        return;
    }
    if value.is_sign_negative() {
        out.push(b'-');
    }
    if value.is_infinite() {
        out.extend_from_slice(b"Infinity");
        return;
    }
    if write_short(out, value.abs()) {
        return;
    }
    let mut buffer = [0; 40];
    let text = shortest(&mut buffer, value.abs());
    let mut halves = text.split(|&c| c == b'e');
    let mantissa = halves.next().unwrap_or_default();
    let exponent: i32 = halves
        .next()
        .and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok())
        .unwrap_or(0);
    let (first, fraction) = mantissa.split_at(mantissa.len().min(1));
    lay_out(out, first, fraction.strip_prefix(b".").unwrap_or(fraction), exponent);
}

/// Appends a number of few digits, as most are; returns whether it was one.
///
/// A text of at most 15 digits stands for one number only, so when the division (correctly rounded,
/// as both sides are exact) gives back the number, its text is the shortest there is.
fn write_short(out: &mut Vec<u8>, value: f64) -> bool {
    const SCALES: [f64; 7] = [1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6];
    if !(1e-3..1e9).contains(&value) && value != 0.0 {
        return false;
    }
    for (places, scale) in SCALES.into_iter().enumerate() {
        let scaled = (value * scale).round();
        if scaled / scale != value {
            continue;
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 … 1e15")]
        let digits = scaled as u64;
        let unit = 10_u64.pow(u32::try_from(places).unwrap_or(0));
        write_uint(out, digits / unit);
        let point = out.len();
        // The 1 in front keeps the zeros after the point and becomes the point.
        match places {
            0 => write_uint(out, 10),
            _ => write_uint(out, unit + digits % unit),
        }
        if let Some(place) = out.get_mut(point) {
            *place = b'.';
        }
        return true;
    }
    false
}

/// Writes the shortest digits that read back as the same number: `d.dddde-dd`.
///
/// Between two equally near texts CPython takes the even one, Rust's shortest form the larger one.
/// That happens from 15 digits on: fewer never stand for two numbers.
fn shortest(buffer: &mut [u8; 40], value: f64) -> &[u8] {
    let length = print(buffer, format_args!("{value:e}"));
    let digits = buffer.iter().take_while(|&&c| c != b'e').filter(|c| c.is_ascii_digit()).count();
    if digits >= 15 {
        let mut other = [0; 40];
        let exact = print(&mut other, format_args!("{value:.*e}", digits - 1));
        let text = other.get(..exact).unwrap_or_default();
        let is_same = std::str::from_utf8(text).is_ok_and(|text| text.parse() == Ok(value));
        if is_same && text.get(..digits + 1) != buffer.get(..digits + 1) {
            *buffer = other;
            return &buffer[..exact];
        }
    }
    &buffer[..length]
}

/// Prints into a buffer; 17 digits, point, sign and exponent always fit.
fn print(buffer: &mut [u8; 40], text: std::fmt::Arguments<'_>) -> usize {
    let mut rest = &mut buffer[..];
    let _ = rest.write_fmt(text);
    let unused = rest.len();
    buffer.len() - unused
}

/// Appends `first.fraction × 10^exponent`, plain from 1e-4 to below 1e16.
fn lay_out(out: &mut Vec<u8>, first: &[u8], fraction: &[u8], exponent: i32) {
    let zeros = |out: &mut Vec<u8>, count: usize| out.resize(out.len() + count, b'0');
    let size = usize::try_from(exponent.unsigned_abs()).unwrap_or(0);
    match exponent {
        0..=15 => {
            out.extend_from_slice(first);
            let whole = fraction.len().min(size);
            out.extend_from_slice(&fraction[..whole]);
            zeros(out, size - whole);
            out.push(b'.');
            match &fraction[whole..] {
                [] => out.push(b'0'),
                rest => out.extend_from_slice(rest),
            }
        }
        -4..=-1 => {
            out.extend_from_slice(b"0.");
            zeros(out, size - 1);
            out.extend_from_slice(first);
            out.extend_from_slice(fraction);
        }
        _ => {
            out.extend_from_slice(first);
            if !fraction.is_empty() {
                out.push(b'.');
                out.extend_from_slice(fraction);
            }
            out.extend_from_slice(if exponent < 0 { b"e-" } else { b"e+" });
            if size < 10 {
                out.push(b'0');
            }
            write_uint(out, size as u64);
        }
    }
}
