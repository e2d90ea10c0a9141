//! The journal of a device: lent to the process that serves it, and shown to its successor.

use std::sync::{Arc, Mutex, PoisonError};

use outrigger_protocol::client::{Client, ClientError, Journal};
use outrigger_protocol::foreign::ForeignFd;
use outrigger_protocol::journal::JournalFormat;

use super::error::Problem;
use crate::attach::AttachError;

/// State that this VMM holds for a device across its processes.
#[derive(Clone)]
pub(super) struct Kept {
    journal: Arc<Journal>,
    /// Descriptors that every successor inherits.
    descriptors: Arc<Mutex<Arc<Vec<ForeignFd>>>>,
}

impl Kept {
    /// Lends the device's first process a journal, if it keeps one. Only a process that this VMM starts can inherit
    /// descriptors; what a server of somebody else's asks to be kept would only be in the way of its successor, such as a tap
    /// that is in use.
    ///
    /// # Errors
    /// If it then does not, or the system has no descriptors left.
    pub(super) fn begin(client: &Client, are_inherited: bool) -> Result<Option<Self>, Problem> {
        let Some(format) = client.journal_format() else { return Ok(None) };
        let journal = Journal::create(format).map_err(Problem::Journal)?;
        match client.begin_journal(&journal) {
            Ok(mut descriptors) => {
                descriptors.truncate(if are_inherited { descriptors.len() } else { 0 });
                Ok(Some(Self { journal: Arc::new(journal), descriptors: Arc::new(Mutex::new(Arc::new(descriptors))) }))
            }
            // It says that it could keep one, not that it can now.
            Err(ClientError::Refused { command, errno }) => {
                log::warn!("a device keeps no journal: {command:?}: the server answers {}", errno.desc());
                Ok(None)
            }
            Err(error) => Err(AttachError::from(error).into()),
        }
    }

    /// The descriptors that every successor inherits.
    pub(super) fn descriptors(&self) -> Arc<Vec<ForeignFd>> {
        self.descriptors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// There will be no successor: what the descriptors hold open, such as a physical device, is to end.
    pub(super) fn release(&self) {
        *self.descriptors.lock().unwrap_or_else(PoisonError::into_inner) = Arc::default();
    }

    /// Shows a successor what its predecessor has written; whether it can go on from there.
    ///
    /// # Errors
    /// If it cannot.
    pub(super) fn offer(&self, client: &Client) -> Result<(), Problem> {
        let ours = self.journal.format();
        match client.journal_format() {
            None => return Err(Problem::Other("keeps no journal".to_owned())),
            Some(theirs) if theirs != ours => {
                let name = |format: &JournalFormat| format!("{} of {} bytes", format.format, format.size);
                let what = format!("keeps another journal: {}, not {}", name(theirs), name(ours));
                return Err(Problem::Other(what));
            }
            Some(_) => {}
        }
        client.offer_journal(&self.journal).map_err(|error| AttachError::from(error).into())
    }
}
