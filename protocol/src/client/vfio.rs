//! A device behind VFIO: KVM is told of its file before the server opens it (`docs/PROTOCOL.md`, "A device behind VFIO").

use zerocopy::IntoBytes;

use super::{Client, ClientError, size_u32};
use crate::command::Command;
use crate::foreign::ForeignFd;
use crate::wire;

impl Client {
    /// The file that KVM is to know of; none: the device is not behind VFIO, or the server was not asked
    /// ([`super::Options::vfio`]). The server answers to nothing else before [`Client::open_vfio`].
    ///
    /// The server says that it is a VFIO file. KVM checks it.
    pub fn vfio_file(&self) -> Result<Option<ForeignFd>, ClientError> {
        if self.server.outrigger_vfio.is_none() {
            return Ok(None);
        }
        self.request(Command::VfioFile, [&[], &[]], &[], |message| {
            let [file]: [_; 1] = message.fds.try_into().map_err(|_| "not one VFIO file")?;
            Ok(Some(file))
        })
    }

    /// Has the server open its device, and says what has been done for it.
    pub fn open_vfio(&self, terms: wire::VfioTerms) -> Result<(), ClientError> {
        let request = wire::VfioOpen { argsz: size_u32::<wire::VfioOpen>(), flags: terms.flags() };
        self.request(Command::VfioOpen, [request.as_bytes(), &[]], &[], |message| match message.parse() {
            Some((reply, _)) if request == reply => Ok(()),
            _ => Err("the answer is for another request to open a device"),
        })
    }
}
