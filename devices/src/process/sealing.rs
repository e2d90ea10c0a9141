//! A device process gives up all but its device, which is open, and makes all threads that it will ever have.

use std::sync::{Arc, Mutex, PoisonError};

use log::warn;
use outrigger_process::seal::filter::{self, Filter};
use outrigger_process::seal::{self, Layer, Missing, Sandbox};
use outrigger_process::{crew, heap, output};
use outrigger_protocol::capabilities::SandboxReport;

use super::{Refusal, Server, host};
use crate::crew::enlist;
use crate::sandbox::{Clients, Filters, Profile};

/// Does so if `sandbox` says so; the threads are made in any case. Returns how far it went, if it did.
pub(super) fn seal<S: Server>(
    server: &S,
    sandbox: Sandbox,
    clients: Clients,
) -> Result<Option<SandboxReport>, Refusal> {
    let profile = match (sandbox, server.profile()) {
        (Sandbox::Off, _) | (Sandbox::On, None) => return make_threads(server, clients, None).map(|_| None),
        (Sandbox::Require, None) => {
            return Err(host("sandbox=require: this program opens files while it serves, and cannot seal itself"));
        }
        (Sandbox::On | Sandbox::Require, Some(profile)) => profile,
    };
    let Profile { kind, file_size } = profile;
    let cannot = |error| host(format!("cannot seal itself: {error}"));
    let mut missing = seal::confine(file_size).map_err(cannot)?;
    filter::name_refused_calls().map_err(cannot)?;
    let filters = Filters::new(kind, clients).map(Arc::new).map_err(cannot)?;
    missing.extend(install(filters.first()));
    // From here on a thread can start no other, so this one's filter is the last.
    missing.extend(make_threads(server, clients, Some(Arc::clone(&filters)))?);
    missing.extend(install(filters.serving()));
    // A kernel without filters lacks each of them.
    missing.dedup_by_key(|missing| missing.layer());
    drop(filters);
    heap::trim();
    match (missing.is_empty(), sandbox) {
        (true, _) => {}
        (false, Sandbox::Require) => return Err(host(format!("sandbox=require: {}", seal::line(&missing)))),
        (false, _) => warn!("{}", seal::line(&missing)),
    }
    let missing = missing.iter().map(|missing| missing.layer().name().to_owned()).collect();
    Ok(Some(SandboxReport { missing }))
}

/// Installs a filter on the calling thread; returns what is missing if that fails.
fn install(filter: &Filter) -> Option<Missing> {
    filter.install().err().map(|error| Missing::new(Layer::Filter, error))
}

/// Makes all threads that this process will ever have, each with the filter of its role if there are any. Returns what is missing of
/// those.
fn make_threads<S: Server>(
    server: &S,
    clients: Clients,
    filters: Option<Arc<Filters>>,
) -> Result<Option<Missing>, Refusal> {
    let missing = Arc::new(Mutex::new(None));
    let found = Arc::clone(&missing);
    let prepare = move |role| {
        S::prepare_thread(role)?;
        if let Some(lack) = filters.as_ref().and_then(|filters| install(filters.of(role))) {
            *found.lock().unwrap_or_else(PoisonError::into_inner) = Some(lack);
        }
        Ok(())
    };
    let made = enlist(server.needs(), clients).and_then(|()| crew::close(prepare));
    made.map_err(|error| host(format!("cannot make its threads: {error}")))?;
    output::release();
    Ok(missing.lock().unwrap_or_else(PoisonError::into_inner).take())
}
