//! Wall-clock times ⇄ ISO 8601 text, as CPython's `isoformat` and `fromisoformat` have it.

use std::ops::RangeInclusive;

use crate::event::WallTime;

const DAY_MICROS: i64 = 86_400_000_000;

/// The days since 1970-01-01 that Python's `date` can hold: the years 1 to 9999.
pub(crate) const DATE_DAYS: RangeInclusive<i64> = -719_162..=2_932_896;

/// Whether Python's `datetime` can hold the time: years 1 to 9999, an offset below one day.
#[must_use]
pub fn is_valid_time(time: &WallTime) -> bool {
    DATE_DAYS.contains(&time.micros.div_euclid(DAY_MICROS))
        && time.offset_micros.is_none_or(|offset| -DAY_MICROS < offset && offset < DAY_MICROS)
}

/// Appends what `datetime.isoformat()` writes; the time must be valid.
pub fn write_iso(out: &mut Vec<u8>, time: &WallTime) {
    write_iso_date(out, time.micros.div_euclid(DAY_MICROS));
    out.push(b'T');
    write_clock(out, time.micros.rem_euclid(DAY_MICROS), true);
    if let Some(offset) = time.offset_micros {
        out.push(if offset < 0 { b'-' } else { b'+' });
        write_clock(out, offset.abs(), false);
    }
}

/// Appends what `date.isoformat()` writes for days since 1970-01-01; they must be valid.
pub fn write_iso_date(out: &mut Vec<u8>, days: i64) {
    let (year, month, day) = civil(days);
    digits(out, year, 4);
    out.push(b'-');
    digits(out, month, 2);
    out.push(b'-');
    digits(out, day, 2);
}

/// Appends `HH:MM[:SS[.ffffff]]`; the seconds always when `full`, else only when they are not 0.
fn write_clock(out: &mut Vec<u8>, micros: i64, full: bool) {
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    digits(out, seconds / 3_600, 2);
    out.push(b':');
    digits(out, seconds / 60 % 60, 2);
    if full || seconds % 60 != 0 || fraction != 0 {
        out.push(b':');
        digits(out, seconds % 60, 2);
    }
    if fraction != 0 {
        out.push(b'.');
        digits(out, fraction, 6);
    }
}

fn digits(out: &mut Vec<u8>, mut value: i64, width: usize) {
    let start = out.len();
    out.resize(start + width, b'0');
    for place in out.iter_mut().skip(start).rev() {
        // A remainder of 10 always fits.
        *place = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
    }
}

/// Reads what `datetime.fromisoformat` of CPython 3.11 reads, its leniences included.
///
/// `text` may be WTF-8: the separator of date and time may be any one character.
#[must_use]
pub fn parse_iso(text: &[u8]) -> Option<WallTime> {
    if text.len() < 7 {
        return None;
    }
    let separator = find_separator(text)?;
    let days = parse_date(text, separator)?;
    let mut time = WallTime { micros: 0, offset_micros: None };
    if text.len() > separator {
        let width = match text.get(separator)? {
            0x00..=0x7f => 1,
            0xe0..=0xef => 3,
            0xf0..=0xff => 4,
            _ => 2,
        };
        time = parse_time(text.get(separator + width..)?)?;
    }
    time.micros += days * DAY_MICROS;
    is_valid_time(&time).then_some(time)
}

/// Finds where the date ends: after 7, 8 or 10 characters, depending on its form.
fn find_separator(text: &[u8]) -> Option<usize> {
    let length = text.len();
    if length == 7 {
        return Some(7);
    }
    let is_digit = |at: usize| text.get(at).is_some_and(u8::is_ascii_digit);
    if text[4] == b'-' {
        if text[5] != b'W' {
            return Some(10);
        }
        if length > 8 && text[8] == b'-' {
            // YYYY-Www-D, or a week followed by a hyphen as separator.
            return match length {
                9 => None,
                _ if is_digit(10) => Some(8),
                _ => Some(10),
            };
        }
        return Some(8);
    }
    if text[4] != b'W' {
        return Some(8);
    }
    let end = (7..length).find(|at| !is_digit(*at)).unwrap_or(length);
    Some(match end {
        ..9 => end,
        _ if end % 2 == 0 => 7,
        _ => 8,
    })
}

/// Reads `YYYY-MM-DD`, `YYYYMMDD` or an ISO week; returns days since 1970-01-01.
fn parse_date(text: &[u8], length: usize) -> Option<i64> {
    let mut scan = Scan { text, at: 0 };
    let year = scan.number(4)?;
    let separated = scan.skip(b'-');
    if scan.skip(b'W') {
        let week = scan.number(2)?;
        let mut day = 1;
        if scan.at < length {
            if separated && !scan.skip(b'-') {
                return None;
            }
            day = scan.number(1)?;
        }
        return week_date(year, week, day);
    }
    let month = scan.number(2)?;
    if separated && !scan.skip(b'-') {
        return None;
    }
    let day = scan.number(2)?;
    let valid = (1..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=days_in_month(year, month)).contains(&day);
    valid.then(|| days_from_civil(year, month, day))
}

/// Reads the time of day and, after `+`, `-` or `Z`, the offset.
fn parse_time(text: &[u8]) -> Option<WallTime> {
    let zone = text.iter().position(|c| matches!(c, b'+' | b'-' | b'Z'));
    let (clock, complete) = parse_clock(text, zone.unwrap_or(text.len()))?;
    if clock.iter().zip([24, 60, 60]).any(|(value, limit)| *value >= limit) {
        return None;
    }
    let [hour, minute, second, fraction] = clock;
    let micros = ((hour * 60 + minute) * 60 + second) * 1_000_000 + fraction;
    let Some(zone) = zone else {
        return complete.then_some(WallTime { micros, offset_micros: None });
    };
    if text[zone] == b'Z' {
        let utc = WallTime { micros, offset_micros: Some(0) };
        return (zone + 1 == text.len()).then_some(utc);
    }
    let sign = if text[zone] == b'-' { -1 } else { 1 };
    let rest = text.get(zone + 1..)?;
    let ([hour, minute, second, fraction], true) = parse_clock(rest, rest.len())? else {
        return None;
    };
    let seconds = (hour * 60 + minute) * 60 + second;
    // CPython takes an offset of whole seconds 0 for UTC, whatever its fraction says.
    let offset = if seconds == 0 { 0 } else { sign * (seconds * 1_000_000 + fraction) };
    Some(WallTime { micros, offset_micros: Some(offset) })
}

/// Reads `HH[:?MM[:?SS[{.,}f+]]]` up to `end`; also returns whether that was all of the text.
fn parse_clock(text: &[u8], end: usize) -> Option<([i64; 4], bool)> {
    let mut values = [0; 4];
    let mut scan = Scan { text, at: 0 };
    let mut separated = false;
    for (index, value) in values.iter_mut().take(3).enumerate() {
        *value = scan.number(2)?;
        let next = text.get(scan.at).copied();
        scan.at += 1;
        if index == 0 {
            separated = next == Some(b':');
        }
        if scan.at >= end {
            return Some((values, next.is_none()));
        }
        match next {
            Some(b':') if separated => {}
            Some(b'.' | b',') => break,
            _ if !separated => scan.at -= 1,
            _ => return None,
        }
    }
    let places = (end - scan.at).min(6);
    values[3] = scan.number(places)? * 10_i64.pow(6 - u32::try_from(places).ok()?);
    while text.get(scan.at).is_some_and(u8::is_ascii_digit) {
        scan.at += 1;
    }
    Some((values, scan.at == text.len()))
}

struct Scan<'a> {
    text: &'a [u8],
    at: usize,
}

impl Scan<'_> {
    fn number(&mut self, width: usize) -> Option<i64> {
        let taken = self.text.get(self.at..self.at + width)?;
        self.at += width;
        taken
            .iter()
            .try_fold(0, |sum, c| c.is_ascii_digit().then(|| sum * 10 + i64::from(c - b'0')))
    }

    fn skip(&mut self, wanted: u8) -> bool {
        let found = self.text.get(self.at) == Some(&wanted);
        self.at += usize::from(found);
        found
    }
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 of a date in the proleptic Gregorian calendar.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    // The year begins in March, so that the leap day is its last.
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    year * 365 + year.div_euclid(4) - year.div_euclid(100)
        + year.div_euclid(400)
        + (month * 153 + 2) / 5
        + day
        - 719_469
}

/// The reverse of [`days_from_civil`].
fn civil(days: i64) -> (i64, i64, i64) {
    // Never too late, and exact for decades around 1970.
    let mut year = 1970 + days.div_euclid(if days < 0 { 365 } else { 366 });
    while days_from_civil(year + 1, 1, 1) <= days {
        year += 1;
    }
    let mut rest = days - days_from_civil(year, 1, 1);
    let mut month = 1;
    while rest >= days_in_month(year, month) {
        rest -= days_in_month(year, month);
        month += 1;
    }
    (year, month, rest + 1)
}

/// Days since 1970-01-01 of an ISO week date.
fn week_date(year: i64, week: i64, day: i64) -> Option<i64> {
    if !(1..=7).contains(&day) || !(1..=53).contains(&week) {
        return None;
    }
    let new_year = days_from_civil(year, 1, 1);
    // 1970-01-01 was a Thursday; Monday is 0.
    let weekday = (new_year + 3).rem_euclid(7);
    if week == 53 && weekday != 3 && !(weekday == 2 && is_leap(year)) {
        return None;
    }
    let monday = new_year - weekday + if weekday > 3 { 7 } else { 0 };
    Some(monday + (week - 1) * 7 + day - 1)
}
