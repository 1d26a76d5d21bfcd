//! Why a request to Auth was not carried out, by what the caller can do about it; and how gRPC says it.

use crate::rate_limit::TooManyCalls;
use tonic::{Code, Status};
use wayleave_audit::OverBudget;
use wayleave_store::StoreError;

/// A request that was not carried out. Nothing was changed, except where a write may have got through to a backend that
/// did not answer ([`RequestError::Unavailable`]).
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The request makes no sense as it is; the text says what is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The caller has not shown who it is, or no longer can.
    #[error("{0}")]
    Unauthenticated(String),
    /// The caller may not.
    #[error("{told}")]
    Denied {
        /// What the caller may know.
        told: String,
        /// The whole reason, for the audit log.
        reason: String,
    },
    /// There is no such thing, as far as the caller may know.
    #[error("{0}")]
    NotFound(String),
    /// The name is taken.
    #[error("{0}")]
    AlreadyExists(String),
    /// It was changed meanwhile.
    #[error("{0}")]
    Conflict(String),
    /// The caller asks too often.
    #[error(transparent)]
    TooMany(#[from] TooManyCalls),
    /// The process sends more events than are taken: it keeps them and waits.
    #[error(transparent)]
    TooManyEvents(#[from] OverBudget),
    /// A bound is reached; later it may work.
    #[error("{0}")]
    Busy(String),
    /// The backend cannot do it now.
    #[error("the Auth Service cannot {doing} now: {source}")]
    Unavailable {
        /// What was being done.
        doing: &'static str,
        /// What the backend said.
        source: StoreError,
    },
    /// A defect, or data that nobody can read any more.
    #[error("the Auth Service failed: {0}")]
    Broken(String),
}

impl RequestError {
    /// A denial whose reason the caller may know.
    pub(crate) fn denied(reason: impl Into<String>) -> Self {
        let told = reason.into();
        Self::Denied { reason: told.clone(), told }
    }

    /// The whole reason, for the audit log and the operator's log.
    pub(crate) fn full_reason(&self) -> String {
        match self {
            Self::Denied { reason, .. } => reason.clone(),
            other => other.to_string(),
        }
    }

    /// For `map_err`: a backend error during something, where no particular outcome was expected.
    pub(crate) fn store(doing: &'static str) -> impl FnOnce(StoreError) -> Self {
        move |source| match source {
            StoreError::NotFound { .. } => {
                Self::NotFound(format!("cannot {doing}: it is not there any more"))
            }
            StoreError::AlreadyExists { .. } => {
                Self::AlreadyExists(format!("cannot {doing}: it exists already"))
            }
            StoreError::Conflict { .. } => {
                Self::Conflict(format!("cannot {doing}: it was changed meanwhile, read it again"))
            }
            StoreError::TooLarge { .. } => Self::Invalid(format!("cannot {doing}: {source}")),
            StoreError::Invalid { .. } => Self::Broken(format!("cannot {doing}: {source}")),
            _ => Self::Unavailable { doing, source },
        }
    }
}

impl From<RequestError> for Status {
    fn from(error: RequestError) -> Self {
        let code = match &error {
            RequestError::Unavailable { source: StoreError::Full { .. }, .. } => Code::FailedPrecondition,
            RequestError::Invalid(_) => Code::InvalidArgument,
            RequestError::Unauthenticated(_) => Code::Unauthenticated,
            RequestError::Denied { .. } => Code::PermissionDenied,
            RequestError::NotFound(_) => Code::NotFound,
            RequestError::AlreadyExists(_) => Code::AlreadyExists,
            RequestError::Conflict(_) => Code::Aborted,
            RequestError::TooMany(_) | RequestError::TooManyEvents(_) | RequestError::Busy(_) => {
                Code::ResourceExhausted
            }
            RequestError::Unavailable { .. } => Code::Unavailable,
            RequestError::Broken(reason) => {
                tracing::error!(%reason, "a request failed");
                return Status::internal("the Auth Service failed; its log says why");
            }
        };
        Status::new(code, error.to_string())
    }
}
