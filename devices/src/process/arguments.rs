//! The command line of a device process, but for the device's own part.

use std::io::{self, Write};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::ExitCode;

use nix::unistd::Uid;
use outrigger_process::launch::EXIT_USAGE;
use outrigger_process::seal::Sandbox;
use outrigger_process::user;
use outrigger_protocol::capabilities::DEFAULT_MAX_DATA_XFER_SIZE;
use outrigger_protocol::server::{Access, Options};

/// How the client reaches the device.
#[derive(Clone, Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct Endpoint {
    /// Listen on this path; serve one client after the other
    #[arg(long, value_name = "PATH")]
    pub(super) socket: Option<PathBuf>,
    /// Serve the client at the other end of this inherited socket, whose guest has no IOMMU; exit when it leaves
    #[arg(long, value_name = "N")]
    pub(super) fd: Option<RawFd>,
}

/// How the device is served.
#[derive(Clone, Debug, clap::Args)]
pub struct Service {
    #[command(flatten)]
    pub(super) endpoint: Endpoint,
    /// Permissions of the socket of --socket, whatever the umask: who may write it may connect, and root
    #[arg(long, value_name = "OCTAL", default_value = "0600", conflicts_with = "fd", value_parser = mode)]
    socket_mode: u32,
    /// Give the socket of --socket to this user, who may connect then; takes root
    #[arg(long, value_name = "NAME|UID", conflicts_with = "fd", value_parser = user::parse)]
    socket_user: Option<Uid>,
    /// Most data in one message, 1 to 1048576; matters where the client does not share its memory
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_MAX_DATA_XFER_SIZE,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(DEFAULT_MAX_DATA_XFER_SIZE)))]
    max_data_xfer_size: u32,
}

/// How the device is served, whose process can seal itself.
#[derive(Clone, Debug, clap::Args)]
pub struct SealedService {
    #[command(flatten)]
    pub(super) service: Service,
    /// Give up all but the device before a client of --socket is served: on, as far as this host permits; require,
    /// completely or not at all; off, for debugging. (With --fd, the environment says so: OUTRIGGER_SANDBOX)
    #[arg(long, value_name = "on|require|off", default_value = "on", conflicts_with = "fd")]
    pub(super) sandbox: Sandbox,
}

impl Service {
    /// Whether the client at the other end of an inherited socket is the only one.
    #[must_use]
    pub fn has_one_client(&self) -> bool {
        self.endpoint.fd.is_some()
    }

    /// Who may connect to the socket.
    pub(super) fn access(&self) -> Access {
        Access { mode: self.socket_mode, owner: self.socket_user }
    }

    pub(super) fn options(&self) -> Options {
        Options { max_data_xfer_size: self.max_data_xfer_size, ..Options::default() }
    }
}

/// Reads the command line; what is wrong with it is told in one line. Help and version go to standard output.
pub fn parse<A: clap::Parser>(program: &str) -> Result<A, ExitCode> {
    A::try_parse().map_err(|error| {
        if !error.use_stderr() {
            error.exit();
        }
        // The first paragraph says what is wrong; what clap puts below is in the help.
        let text = error.to_string();
        let first = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
        let words: Vec<_> = first.split_whitespace().collect();
        let _ = writeln!(io::stderr(), "{program}: {} (see {program} --help)", words.join(" "));
        ExitCode::from(EXIT_USAGE)
    })
}

/// Permission bits.
fn mode(text: &str) -> Result<u32, &'static str> {
    let is_octal = text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    let mode = if is_octal { u32::from_str_radix(text, 8).ok() } else { None };
    mode.filter(|&mode| mode <= 0o777).ok_or("must be octal, from 0 to 0777")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal_and_permissions_only() {
        assert_eq!((mode("0600"), mode("660"), mode("0")), (Ok(0o600), Ok(0o660), Ok(0)));
        for text in ["", "+600", "0o600", "608", "1777", "01000", "77777777777777777777", "rw"] {
            assert!(mode(text).is_err(), "{text:?}");
        }
    }
}
