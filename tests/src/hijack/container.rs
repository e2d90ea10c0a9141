//! The filter of system calls that container engines put around a process which has no `CAP_SYS_ADMIN`: none makes a namespace.

use std::io;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

/// A bit for each kind of namespace (clone(2)).
const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// Puts it around the calling thread, and all that it starts.
///
/// # Errors
/// The kernel refuses it.
pub fn enter() -> io::Result<()> {
    let any_namespace = |flag: i32| {
        let bit = u64::from(flag.cast_unsigned());
        let is_set = SeccompCmpOp::MaskedEq(bit);
        SeccompCondition::new(0, SeccompCmpArgLen::Qword, is_set, bit)
            .and_then(|condition| SeccompRule::new(vec![condition]))
    };
    let by_flags: Result<Vec<SeccompRule>, _> = NAMESPACES.into_iter().map(any_namespace).collect();
    let denied = [
        (libc::SYS_unshare, Vec::new()),
        (libc::SYS_setns, Vec::new()),
        (libc::SYS_clone, by_flags.map_err(io::Error::other)?),
    ];
    install(denied, libc::EPERM)?;
    // Its flags are in memory, where a filter does not look: the C library takes clone in its place.
    install([(libc::SYS_clone3, Vec::new())], libc::ENOSYS)
}

fn install(denied: impl IntoIterator<Item = (i64, Vec<SeccompRule>)>, errno: i32) -> io::Result<()> {
    let answer = SeccompAction::Errno(errno.cast_unsigned());
    let filter = SeccompFilter::new(denied.into_iter().collect(), SeccompAction::Allow, answer, TargetArch::x86_64);
    let program: BpfProgram = filter.and_then(TryInto::try_into).map_err(io::Error::other)?;
    apply_filter(&program).map_err(io::Error::other)
}
