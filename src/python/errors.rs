//! Core errors → Python exception classes: one exhaustive match.

use pyo3::{PyErr, Python};

use crate::codec::json::INT_TOO_LONG;
use crate::error::Error;

pub(super) use classes::DecodeError;

mod classes {
    pyo3::import_exception!(eventbus.errors, BusClosedError);
    pyo3::import_exception!(eventbus.errors, ConfigError);
    pyo3::import_exception!(eventbus.errors, ConnectError);
    pyo3::import_exception!(eventbus.errors, DecodeError);
    pyo3::import_exception!(eventbus.errors, EncodeAttributeError);
    pyo3::import_exception!(eventbus.errors, EncodeTypeError);
    pyo3::import_exception!(eventbus.errors, EncodeValueError);
    pyo3::import_exception!(eventbus.errors, EventBusError);
    pyo3::import_exception!(eventbus.errors, ForkedError);
    pyo3::import_exception!(eventbus.errors, InternalError);
    pyo3::import_exception!(eventbus.errors, InvalidArgumentError);
    pyo3::import_exception!(eventbus.errors, LeaseLost);
    pyo3::import_exception!(eventbus.errors, NotConnectedError);
    pyo3::import_exception!(eventbus.errors, NotFoundError);
    pyo3::import_exception!(eventbus.errors, OperationTimeout);
    pyo3::import_exception!(eventbus.errors, PayloadTooLarge);
    pyo3::import_exception!(eventbus.errors, QueueFull);
    pyo3::import_exception!(eventbus.errors, SerializationError);
    pyo3::import_exception!(eventbus.errors, TopicError);
    pyo3::import_exception!(eventbus.errors, OperationError);
    pyo3::import_exception!(eventbus.errors, UnknownVersionError);
    pyo3::import_exception!(eventbus.errors, UnsupportedError);
    pyo3::import_exception!(eventbus.errors, VersionConflict);
}

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::Config { problems } => classes::ConfigError::new_err((text, problems)),
            Error::Topic { .. } => classes::TopicError::new_err(text),
            Error::Connect { .. } | Error::Refused { .. } => classes::ConnectError::new_err(text),
            Error::Denied { .. } => classes::OperationError::new_err(text),
            Error::Serialization { code, .. } => classes::SerializationError::new_err((text, code)),
            Error::Timeout { outcome_unknown, .. } => {
                classes::OperationTimeout::new_err((text, outcome_unknown))
            }
            Error::NotConnected { .. } => classes::NotConnectedError::new_err(text),
            Error::Closed { .. } => classes::BusClosedError::new_err(text),
            Error::Encode { reason, .. }
                if reason.starts_with("Circular") || reason.starts_with(INT_TOO_LONG) =>
            {
                classes::EncodeValueError::new_err(text)
            }
            Error::Encode { reason, .. } if reason.contains("' object has no attribute '") => {
                classes::EncodeAttributeError::new_err(text)
            }
            Error::Encode { .. } => classes::EncodeTypeError::new_err(text),
            Error::Decode { .. } => classes::DecodeError::new_err(text),
            Error::UnknownVersion { version, .. } => {
                classes::UnknownVersionError::new_err((text, version))
            }
            Error::TooLarge { size, limit, .. } | Error::TooLong { size, limit, .. } => {
                classes::PayloadTooLarge::new_err((text, size, limit))
            }
            Error::QueueFull { limit, .. } => classes::QueueFull::new_err((text, limit)),
            Error::LeaseLost { .. } => classes::LeaseLost::new_err(text),
            Error::VersionConflict { key, expected, actual } => {
                classes::VersionConflict::new_err((text, key, expected, actual))
            }
            Error::Unsupported { .. } => classes::UnsupportedError::new_err(text),
            Error::NotFound { .. } => classes::NotFoundError::new_err(text),
            Error::InvalidArgument { .. } => classes::InvalidArgumentError::new_err(text),
            Error::Forked { .. } => classes::ForkedError::new_err(text),
            Error::Internal { .. } => classes::InternalError::new_err(text),
        }
    }
}

/// Whether an error is one of ours.
pub(crate) fn is_own(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<classes::EventBusError>(py)
}
