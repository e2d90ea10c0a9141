//! What the VMM and the device programs have in common as processes.
//!
//! - [`launch`]: how the VMM starts a device program, and how a program says that it cannot start.
//! - [`options`]: the text of an option, `KEY=VALUE,KEY=VALUE`.

#![forbid(unsafe_code)]

pub mod launch;
pub mod options;
