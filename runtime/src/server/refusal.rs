//! Errors in the shape that clients of `OpenAI` read.

use serde_json::{Value, json};

use crate::{Error, FinishReason, chat::ChatError};

/// Why a request gets no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// What was expected, what was found, what to do.
    pub message: String,
    /// The field that is wrong.
    pub param: Option<String>,
    /// A word for programs.
    pub code: Option<&'static str>,
    /// Whether the engine had taken the request already, and counts its end itself.
    pub was_accepted: bool,
}

impl Refusal {
    /// A refusal with a status and a message.
    pub fn new(status: u16, message: impl Into<String>) -> Refusal {
        Refusal { status, message: message.into(), param: None, code: None, was_accepted: false }
    }

    /// A field with a wrong value.
    pub fn field(name: &str, message: impl Into<String>) -> Refusal {
        Refusal { param: Some(name.to_owned()), ..Refusal::new(400, message) }
    }

    /// The same with a word for programs.
    #[must_use]
    pub fn code(self, code: &'static str) -> Refusal {
        Refusal { code: Some(code), ..self }
    }

    /// The same for a request that the engine had taken.
    #[must_use]
    pub fn accepted(self) -> Refusal {
        Refusal { was_accepted: true, ..self }
    }

    /// The engine is gone.
    pub fn failed() -> Refusal {
        Refusal::new(503, "the engine has failed and is being started again; try again in a moment")
            .code("engine_failed")
    }

    /// Why an answer ended without being one, if that is how it ended.
    pub fn of(reason: FinishReason) -> Option<Refusal> {
        let refusal = match reason {
            FinishReason::Stop(_) | FinishReason::Length | FinishReason::Cancelled => return None,
            FinishReason::Failed => Refusal::failed(),
            FinishReason::Late => {
                Refusal::new(504, "the deadline passed before the answer was complete").code("deadline")
            }
            FinishReason::NotFinite => {
                let message = "the model's arithmetic overflowed in this answer: its logits held a NaN or an infinity; \
                               a model compiled with --activations f32 shows whether quantization causes it";
                Refusal::new(500, message).code("not_finite")
            }
        };
        Some(refusal.accepted())
    }

    /// The reason in metrics.
    pub fn reason(&self) -> &'static str {
        match (self.status, self.code) {
            (_, Some(code)) => code,
            (401, _) => "authentication",
            (404, _) => "not_found",
            (405, _) => "method",
            (408, _) => "timeout",
            (413, _) => "too_large",
            (500.., _) => "internal",
            _ => "invalid",
        }
    }

    /// The body of the response.
    pub fn body(&self) -> Value {
        let kind = match self.status {
            401 => "authentication_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        let message = error.to_string();
        match error {
            Error::QueueFull { .. } => Refusal::new(429, message).code("queue_full"),
            Error::Late { .. } => Refusal::new(503, message).code("deadline"),
            Error::TooLong { .. } => Refusal::new(400, message).code("context_length_exceeded"),
            Error::Sampling { name, .. } => Refusal::field(&name.replace('-', "_"), message),
            Error::EmptyPrompt | Error::UnknownToken { .. } => Refusal::field("prompt", message),
            Error::UnknownBias { .. } => Refusal::field("logit_bias", message),
            Error::Priority { .. } => Refusal::field("priority", message),
            Error::TooManyChoices { .. } => Refusal::field("n", message),
            _ => Refusal::new(500, "the engine could not take the request"),
        }
    }
}

impl From<ChatError> for Refusal {
    fn from(error: ChatError) -> Refusal {
        Refusal::field("messages", error.to_string())
    }
}
