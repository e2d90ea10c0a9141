//! A tap of the test's own, on which the host has an address and answers for it.

use std::process::Command;

/// The host's address (RFC 5737, TEST-NET-1), which the payload's network card asks for.
pub const HOST: &str = "192.0.2.1";

/// A tap for several queues, switched on; gone when dropped.
pub struct Tap(String);

impl Tap {
    /// Makes it, and takes away one of that name that an earlier test left.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn make(name: &str) -> Self {
        let tap = Self(name.to_owned());
        tap.delete();
        for arguments in [
            &["tuntap", "add", "dev", name, "mode", "tap", "multi_queue"][..],
            &["address", "add", &format!("{HOST}/32"), "dev", name],
            &["link", "set", name, "up"],
        ] {
            let output = Command::new("ip").args(arguments).output();
            let output = output.expect("ip is there: apt-get install iproute2");
            let problem = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "ip {arguments:?}: {problem}; be root, and load the module tun");
        }
        tap
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0
    }

    fn delete(&self) {
        // Fails if there is none.
        let _ = Command::new("ip").args(["tuntap", "del", "dev", &self.0, "mode", "tap", "multi_queue"]).output();
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.delete();
    }
}
