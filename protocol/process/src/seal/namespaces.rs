//! Namespaces of this process's own (namespaces(7)), and an empty root that cannot be written.
//!
//! Root makes them as root and gives up its user afterwards. Any other user has to own a user namespace first.

use std::fs;
use std::io;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, chdir, chroot, pivot_root};

use super::layer::Layer;
use crate::links::{self, Reach};

/// Any directory that is there: it is covered within the new mount namespace only.
const COVERED: &str = "/proc";

/// Those that hold things which a device does not need.
const OTHERS: [(Layer, CloneFlags); 4] = [
    (Layer::NetworkNamespace, CloneFlags::CLONE_NEWNET),
    (Layer::IpcNamespace, CloneFlags::CLONE_NEWIPC),
    (Layer::UtsNamespace, CloneFlags::CLONE_NEWUTS),
    (Layer::CgroupNamespace, CloneFlags::CLONE_NEWCGROUP),
];

/// Leaves all namespaces but that of users.
pub(super) fn leave_others(layer: &mut impl FnMut(Layer, io::Result<()>)) {
    for (other, flag) in OTHERS {
        layer(other, unshare(flag).map_err(Into::into));
    }
    layer(Layer::MountNamespace, empty_root());
}

/// A user namespace in which the present user and group are the only ones; where there is no /proc any more, not even they.
pub(crate) fn own_user() -> io::Result<()> {
    let (user, group) = (Uid::effective(), Gid::effective());
    unshare(CloneFlags::CLONE_NEWUSER)?;
    if !Path::new("/proc/self").exists() {
        return Ok(());
    }
    map(user, group)
}

/// Has the user namespace that this process is in know this user and group, and no other.
///
/// # Errors
/// The host does not permit it.
pub fn map(user: Uid, group: Gid) -> io::Result<()> {
    fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    // Without it the group could not be mapped (user_namespaces(7)).
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1"))
}

/// A mount namespace with nothing in it.
fn empty_root() -> io::Result<()> {
    const NONE: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS)?;
    // Nothing of this goes back to where it was copied from.
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // One that shows this process and no other, where the process has a PID namespace of its own.
    let _ = mount(Some("proc"), COVERED, Some("proc"), flags, Some("subset=pid"));
    // An older kernel (before Linux 5.2) leaves the host's.
    let _ = links::keep(Reach::Alone);
    links::keep(Reach::Host)?;
    mount(Some("none"), COVERED, Some("tmpfs"), flags, Some("size=4k,nr_inodes=1,mode=0555"))?;
    chdir(COVERED)?;
    match pivot_root(".", ".") {
        // The old root is below the new one now.
        Ok(()) => umount2(".", MntFlags::MNT_DETACH)?,
        // An initial RAM file system cannot be moved: it is covered.
        Err(_) => {
            mount(Some("."), "/", NONE, MsFlags::MS_MOVE, NONE)?;
            chroot(".")?;
        }
    }
    chdir("/")?;
    mount(NONE, "/", NONE, flags | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, NONE)?;
    Ok(())
}
