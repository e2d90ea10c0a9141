//! Common parts of the VMM and the device programs as processes, for any caller and any destination of their messages.
//!
//! | module | one idea |
//! |---|---|
//! | [`launch`] | how the VMM starts a device program, and how a program says that it cannot start |
//! | [`options`] | the text of an option, `KEY=VALUE,KEY=VALUE` |
//! | [`inherited`] | state that the caller left behind (signals, limits), brought into a known form |
//! | [`aligned`] | text in columns |
//! | [`child`] | a child process that starts in that known form and ends with its parent |
//! | [`crew`] | threads that are made at the start, for work that comes later |
//! | [`fork`] | a process that is a copy of this one, without a program of its own |
//! | [`packets`] | messages with descriptors between a process and its copy |
//! | [`pidfd`] | a process by its descriptor |
//! | [`guardian`] | a process outside that waits for a child which gives up all that it has |
//! | [`links`] | the kind of a descriptor, without a path |
//! | [`heap`] | one heap for all threads |
//! | [`output`] | lines for the user and the log, written by a thread that alone may block |
//! | [`seal`] | what a device process gives up once its device is open |
//! | [`user`] | a user by name or number |
//! | [`rate_limit`] | a bound on the lines that a peer or a guest can cause |

pub mod aligned;
pub mod child;
pub mod crew;
pub mod dump;
pub mod fork;
pub mod guardian;
pub mod heap;
pub mod inherited;
pub mod launch;
pub mod links;
pub mod options;
pub mod output;
pub mod packets;
pub mod pidfd;
pub mod rate_limit;
pub mod seal;
pub mod user;

pub use rate_limit::RateLimit;
