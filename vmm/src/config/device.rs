//! `--device socket=PATH[,dma=messages]`.

use std::path::PathBuf;

use super::options::Options;
use super::{Dma, Problem, dma};

/// Longest path of a Unix socket in bytes: Linux's `sockaddr_un`, less the terminating zero.
pub const MAX_SOCKET_PATH: usize = 107;

/// A vfio-user server that someone else runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketConfig {
    /// The Unix socket it listens on, at most [`MAX_SOCKET_PATH`] bytes.
    pub path: PathBuf,
    /// How the server reaches guest RAM.
    pub dma: Dma,
}

impl SocketConfig {
    /// Reads the option's value.
    pub(crate) fn parse(text: &str) -> Result<Self, Problem> {
        let options = Options::parse(text, &["socket", dma::KEY], None)?;
        options.required("socket", "PATH")?;
        let path = options.parsed("socket", |path| match path.len() {
            length if length > MAX_SOCKET_PATH => Err(Problem::TooLong { length, limit: MAX_SOCKET_PATH }),
            _ => Ok(PathBuf::from(path)),
        })?;
        Ok(SocketConfig { path: path.unwrap_or_default(), dma: Dma::parse(&options)? })
    }
}
