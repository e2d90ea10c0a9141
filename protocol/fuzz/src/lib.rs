//! Hostile peers for both sides of the vfio-user protocol, driven by libFuzzer.
//!
//! | target | what is attacked |
//! |---|---|
//! | [`client_codec`] | framing, capabilities and the replies to queries, as the client decodes them |
//! | [`server_codec`] | commands, as the server decodes them |
//! | [`server_session`] | the server with a busy device, by a client that does anything, at any time |
//! | [`client_session`] | the client's calls, by a server that does anything, at any time |
//! | [`ioregionfd`] | both sides of an ioregionfd |
//!
//! After every input nothing may be left behind (descriptors, mappings, threads), no wait may have gone beyond its
//! deadline, and memory must have stayed within the limits of docs/PROTOCOL.md ([`checks`]).
//!
//! From the root of the repository, with the stable toolchain and a C++ compiler:
//!
//! ```sh
//! scripts/fuzz                              # a minute each
//! scripts/fuzz --seconds 1800 server_session
//! scripts/fuzz --seeds                      # record the corpus anew
//! ```
//!
//! `corpus/` has the seeds: exchanges of our own client and server, recorded by `src/bin/seeds.rs`. What a run finds beyond
//! those stays in `target/`. An input that fails is kept as well, and its path printed; run the target with that path
//! as its argument to see it fail again.

mod allocations;
pub mod checks;
pub mod client_codec;
pub mod client_session;
pub mod descriptors;
pub mod device;
pub mod framing;
pub mod input;
pub mod ioregionfd;
pub mod peer;
pub mod server_codec;
pub mod server_session;
pub mod version;
