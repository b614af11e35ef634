//! Python's `datetime` classes ⇄ plain numbers.

use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{
    PyDate, PyDateAccess, PyDateTime, PyDelta, PyDeltaAccess, PyTimeAccess, PyType, PyTzInfo,
    PyTzInfoAccess,
};

use crate::event::WallTime;

const MICROS_PER_DAY: i64 = 86_400_000_000;

/// Returns days since 1970-01-01 of a proleptic Gregorian date (Howard Hinnant, "chrono-compatible
/// low-level date algorithms").
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The inverse of [`days_from_civil`].
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

/// Returns days since 1970-01-01.
#[allow(clippy::cast_possible_truncation)] // years 1–9999
pub(super) fn days(date: &Bound<'_, PyDate>) -> i32 {
    let (month, day) = (i64::from(date.get_month()), i64::from(date.get_day()));
    days_from_civil(i64::from(date.get_year()), month, day) as i32
}

/// Returns the date of a number of days since 1970-01-01.
pub(super) fn date<'py>(py: Python<'py>, days: i32) -> PyResult<Bound<'py, PyDate>> {
    let (year, month, day) = civil_from_days(i64::from(days));
    PyDate::new(py, narrow(year)?, narrow(month)?, narrow(day)?)
}

/// Returns the body of a TIMEDELTA extension.
pub(super) fn delta_bytes(delta: &Bound<'_, PyDelta>) -> [u8; 16] {
    let mut body = [0; 16];
    body[..8].copy_from_slice(&i64::from(delta.get_days()).to_be_bytes());
    body[8..12].copy_from_slice(&delta.get_seconds().to_be_bytes());
    body[12..].copy_from_slice(&delta.get_microseconds().to_be_bytes());
    body
}

/// Returns a datetime's wall clock and offset; `None` for anything else.
pub(crate) fn wall_time(value: &Bound<'_, PyAny>) -> PyResult<Option<WallTime>> {
    let Ok(time) = value.cast::<PyDateTime>() else { return Ok(None) };
    let (month, day) = (i64::from(time.get_month()), i64::from(time.get_day()));
    let days = days_from_civil(i64::from(time.get_year()), month, day);
    let seconds = i64::from(time.get_hour()) * 3600
        + i64::from(time.get_minute()) * 60
        + i64::from(time.get_second());
    let micros = days * MICROS_PER_DAY + seconds * 1_000_000 + i64::from(time.get_microsecond());
    let py = value.py();
    let offset_micros = match time.get_tzinfo() {
        None => None,
        Some(zone) if zone.is(utc(py)?) => Some(0),
        Some(_) => {
            let offset = value.call_method0(intern!(py, "utcoffset"))?;
            match offset.cast::<PyDelta>() {
                Ok(delta) => Some(
                    (i64::from(delta.get_days()) * 86_400 + i64::from(delta.get_seconds()))
                        * 1_000_000
                        + i64::from(delta.get_microseconds()),
                ),
                Err(_) => None,
            }
        }
    };
    Ok(Some(WallTime { micros, offset_micros }))
}

fn utc(py: Python<'_>) -> PyResult<&Bound<'_, PyTzInfo>> {
    static UTC: PyOnceLock<Py<PyTzInfo>> = PyOnceLock::new();
    let utc = UTC.get_or_try_init(py, || PyTzInfo::utc(py).map(|zone| zone.to_owned().unbind()))?;
    Ok(utc.bind(py))
}

/// Builds a Python `datetime`.
pub(crate) fn datetime<'py>(py: Python<'py>, wall: &WallTime) -> PyResult<Bound<'py, PyAny>> {
    let (year, month, day) = civil_from_days(wall.micros.div_euclid(MICROS_PER_DAY));
    let rest = wall.micros.rem_euclid(MICROS_PER_DAY);
    let (seconds, micros) = (rest / 1_000_000, rest % 1_000_000);
    let zone = match wall.offset_micros {
        None => None,
        Some(0) => Some(utc(py)?.clone()),
        Some(offset) => {
            static TIMEZONE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
            let (offset_days, offset) =
                (offset.div_euclid(MICROS_PER_DAY), offset.rem_euclid(MICROS_PER_DAY));
            let delta = PyDelta::new(
                py,
                narrow(offset_days)?,
                narrow(offset / 1_000_000)?,
                narrow(offset % 1_000_000)?,
                false,
            )?;
            let zone = TIMEZONE.import(py, "datetime", "timezone")?.call1((delta,))?;
            Some(zone.cast_into::<PyTzInfo>()?)
        }
    };
    let time = PyDateTime::new(
        py,
        narrow(year)?,
        narrow(month)?,
        narrow(day)?,
        narrow(seconds / 3600)?,
        narrow(seconds / 60 % 60)?,
        narrow(seconds % 60)?,
        narrow(micros)?,
        zone.as_ref(),
    )?;
    Ok(time.into_any())
}

/// Reads a text as `datetime.fromisoformat` does.
pub(crate) fn from_iso<'py>(text: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    static DATETIME: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let py = text.py();
    DATETIME.import(py, "datetime", "datetime")?.call_method1(intern!(py, "fromisoformat"), (text,))
}

fn narrow<T: TryFrom<i64>>(number: i64) -> PyResult<T> {
    T::try_from(number).map_err(|_| PyValueError::new_err("date is out of range"))
}
