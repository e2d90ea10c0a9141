//! Which path and method is which operation of the control socket.

use std::path::PathBuf;

use outrigger_process::options::one_line;
use serde::{Deserialize, Serialize};

use super::ServedRun;
use super::http::{Answer, Method, Operations, Refusal};
use super::status::{Replace, Replaced, RunState, milliseconds};
use crate::pci::Slot;
use crate::peripherals::replace::ReplaceError;

/// An operation on a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Operation {
    /// `GET /v1/status`.
    Status,
    /// `POST /v1/stop`.
    Stop,
    /// `POST /v1/devices/SLOT/restart`.
    Restart(Slot),
    /// `POST /v1/devices/SLOT/replace`.
    Replace(Slot),
}

/// The body of a request that says all by its path. It may be left out.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// The answer to a request that ends the run.
#[derive(Serialize)]
struct Stopping {
    state: RunState,
}

const READ: &str = "GET, HEAD";
const WRITE: &str = "POST";

impl Operation {
    fn find(method: &Method, path: &str) -> Result<Self, Refusal> {
        let (operation, allow) = match path {
            "/v1/status" => (Self::Status, READ),
            "/v1/stop" => (Self::Stop, WRITE),
            _ => (Self::of_device(path)?, WRITE),
        };
        let allowed = match method {
            Method::Get | Method::Head => allow == READ,
            Method::Post => allow == WRITE,
            Method::Other(_) => false,
        };
        if allowed {
            return Ok(operation);
        }
        let problem = format!("{path} takes {}", allow.replace(", ", " and "));
        Err(Refusal { allow: Some(allow), ..Refusal::new(405, problem) })
    }

    /// `/v1/devices/SLOT/VERB`.
    fn of_device(path: &str) -> Result<Self, Refusal> {
        let nothing = || Refusal::new(404, "there is no such path; docs/CONTROL.md has all of them");
        let (slot, verb) =
            path.strip_prefix("/v1/devices/").and_then(|rest| rest.split_once('/')).ok_or_else(nothing)?;
        let operation = match verb {
            "restart" => Self::Restart,
            "replace" => Self::Replace,
            _ => return Err(nothing()),
        };
        let slot = Slot::parse(slot).ok_or_else(|| Refusal::new(404, "a slot is written like 00:01.0"))?;
        Ok(operation(slot))
    }
}

impl Operations for ServedRun {
    type Operation = Operation;

    fn find(&self, method: &Method, path: &str) -> Result<Operation, Refusal> {
        Operation::find(method, path)
    }

    fn perform(&self, operation: &Operation, body: &[u8]) -> Result<Answer, Refusal> {
        let replaced = |pause| Answer::json(200, &Replaced { pause_ms: milliseconds(pause) });
        match operation {
            Operation::Status => {
                no_body(body)?;
                Ok(Answer::json(200, &self.status()))
            }
            Operation::Stop => {
                no_body(body)?;
                Ok(Answer::json(202, &Stopping { state: RunState::Ending }))
            }
            Operation::Restart(slot) => {
                no_body(body)?;
                Ok(replaced(self.devices().restart(*slot)?))
            }
            Operation::Replace(slot) => {
                let Replace { program } = read_or_default(body)?;
                if program.as_ref().is_some_and(String::is_empty) {
                    return Err(Refusal::new(400, "program: is empty"));
                }
                Ok(replaced(self.devices().replace(*slot, program.map(PathBuf::from))?))
            }
        }
    }

    fn conclude(&self, operation: &Operation) {
        match operation {
            Operation::Status | Operation::Restart(_) | Operation::Replace(_) => {}
            // The process may end before its next system call, and the client is to have its answer.
            Operation::Stop => self.stop(),
        }
    }
}

impl From<ReplaceError> for Refusal {
    fn from(error: ReplaceError) -> Self {
        let status = match error {
            ReplaceError::NoDevice => 404,
            ReplaceError::NotOurs | ReplaceError::NoWay(_) | ReplaceError::Busy(_) | ReplaceError::Refused(_) => 409,
            ReplaceError::Failed(_) => 500,
        };
        Self::new(status, one_line(&error.to_string()))
    }
}

/// Refuses a body that says something.
fn no_body(body: &[u8]) -> Result<(), Refusal> {
    if body.trim_ascii().is_empty() { Ok(()) } else { read(body).map(|Nothing {}| ()) }
}

/// Reads a body that may be left out.
fn read_or_default<'a, T: Deserialize<'a> + Default>(body: &'a [u8]) -> Result<T, Refusal> {
    if body.trim_ascii().is_empty() { Ok(T::default()) } else { read(body) }
}

/// Reads a body.
fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refusal> {
    // Fields by name only: serde would take an array, too.
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(Refusal::new(400, "the body is not a JSON object"));
    }
    serde_json::from_slice(body).map_err(|error| Refusal::new(400, format!("the body cannot be used: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_has_its_methods() {
        let find = |method: &str, path: &str| Operation::find(&method.into(), path);
        assert_eq!(find("GET", "/v1/status"), Ok(Operation::Status));
        assert_eq!(find("HEAD", "/v1/status"), Ok(Operation::Status));
        assert_eq!(find("POST", "/v1/stop"), Ok(Operation::Stop));
        assert_eq!(find("POST", "/v1/devices/00:01.0/restart"), Ok(Operation::Restart(Slot(1))));
        assert_eq!(find("POST", "/v1/devices/0000:00:1f.0/replace"), Ok(Operation::Replace(Slot(31))));
        for (method, path, allow) in [
            ("GET", "/v1/devices/00:01.0/restart", "POST"),
            ("POST", "/v1/status", "GET, HEAD"),
            ("GET", "/v1/stop", "POST"),
            ("HEAD", "/v1/stop", "POST"),
            ("get", "/v1/status", "GET, HEAD"),
            ("BREW", "/v1/stop", "POST"),
        ] {
            let refusal = find(method, path).unwrap_err();
            assert_eq!((refusal.status, refusal.allow), (405, Some(allow)), "{method} {path}");
        }
        for slot in
            ["", "1", "00:01.1", "00:20.0", "01:01.0", "00:+1.0", "00%3A01.0", "00:01.0/00:01.0", "..", "\u{e9}"]
        {
            assert_eq!(find("POST", &format!("/v1/devices/{slot}/restart")).unwrap_err().status, 404, "{slot}");
        }
        for path in [
            "/v1/devices/00:01.0",
            "/v1/devices/00:01.0/",
            "/v1/devices/00:01.0/eject",
            "/",
            "/v1",
            "/v1/status/",
            "/v2/status",
            "/v1/Status",
            "//v1/status",
            "/v1/../v1/status",
        ] {
            assert_eq!(find("GET", path).unwrap_err().status, 404, "{path}");
        }
    }

    #[test]
    fn a_body_where_there_is_nothing_to_say_is_refused() {
        for body in ["", " \r\n", "{}", " { } "] {
            assert_eq!(no_body(body.as_bytes()), Ok(()), "{body:?}");
        }
        for body in ["{\"force\": true}", "[]", "null", "{", "{}{}", "\u{0}", "nonsense"] {
            assert_eq!(no_body(body.as_bytes()).unwrap_err().status, 400, "{body:?}");
        }
        let deep = format!("{{\"a\": {}", "[".repeat(60_000));
        assert_eq!(no_body(deep.as_bytes()).unwrap_err().status, 400);
    }
}
