//! The choice, on descriptions made by hand.

use std::os::fd::{FromRawFd, IntoRawFd};

use outrigger_protocol::wire::{IOREGION_POSTED_WRITES, REGION_READ, REGION_WRITE};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::pci::bar::Bars;

fn region(size: u64, areas: &[(u64, u64)]) -> RegionInfo {
    let fd = Some(std::fs::File::open("/dev/null").unwrap().into());
    let flags = REGION_READ | REGION_WRITE;
    RegionInfo { index: 2, flags, size, offset: 0, fd, areas: areas.to_vec(), region_type: None }
}

/// BAR 2 of 64 KiB, with these mappable areas and sub-regions, and its MSI-X table and pending bits at 0x3000.
fn description(areas: &[(u64, u64)], io_fds: Vec<IoFd>) -> Description {
    let absent = |index| RegionInfo { index, ..region(0, &[]) };
    let mut regions: Vec<_> = (0..7).map(absent).collect();
    regions[2] = region(0x1_0000, areas);
    let mut sub_regions = vec![Vec::new(); 7];
    sub_regions[2] = io_fds;
    Description {
        resettable: true,
        config: vec![0; 256],
        regions,
        io_fds: sub_regions,
        bars: Bars::default(),
        flr: None,
        intx: false,
        msi: None,
        msix: Some(MsixCapability { offset: 0x40, vectors: 2, table: (2, 0x3000), pba: (2, 0x3020) }),
    }
}

fn socket() -> Arc<OwnedFd> {
    let (ours, theirs) = SocketType::Stream.pair().unwrap();
    // What is at the other end does not matter, but it must be there.
    std::mem::forget(theirs);
    Arc::new(ours)
}

fn eventfd() -> Arc<OwnedFd> {
    let raw = EventFd::new(0).unwrap().into_raw_fd();
    // SAFETY: ownership moves from the EventFd.
    Arc::new(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn asked(offset: u64, size: u64, flags: u32) -> IoFd {
    IoFd { offset, size, kind: IoFdKind::Ioregionfd { user_data: offset, flags }, fd: socket() }
}

fn signalled(offset: u64, size: u64) -> IoFd {
    IoFd { offset, size, kind: IoFdKind::Ioeventfd { datamatch: None }, fd: eventfd() }
}

/// First and last byte and the text of each line, up to the first run of spaces in the text.
fn lines(description: &Description, allowed: AllowedPaths) -> Vec<(u64, String)> {
    let asked_by = if allowed.allow(PathName::Ioregionfd) { AskedBy::Kvm } else { AskedBy::Vmm };
    let paths = RegionPaths::choose(description, 2, allowed, asked_by);
    let all = paths.complete();
    assert_eq!((all[0].range.start, all[all.len() - 1].range.end), (0, paths.size));
    for pair in all.windows(2) {
        assert!(pair[0].range.end == pair[1].range.start, "{all:?}");
    }
    let text = |part: &SubRange| {
        let text = paths.explain(part);
        let (name, reason) = text.split_once(' ').unwrap();
        let because = reason.split_once("; ").map(|(_, because)| format!(" ({because})"));
        format!("{name}{}", because.unwrap_or_default())
    };
    all.iter().map(|part| (part.range.start, text(part))).collect()
}

fn assert_lines(description: &Description, allowed: AllowedPaths, expected: &[(u64, &str)]) {
    let lines = lines(description, allowed);
    assert_eq!(lines.iter().map(|(at, text)| (*at, text.as_str())).collect::<Vec<_>>(), expected);
}

#[test]
fn all_kinds_mix_within_a_bar() {
    let io_fds = vec![asked(0x1000, 0x1000, 0), asked(0x2000, 0x1000, IOREGION_POSTED_WRITES), signalled(0x5000, 4)];
    assert_lines(
        &description(&[(0x6000, 0x1000)], io_fds),
        AllowedPaths::default(),
        &[
            (0, "message"),
            (0x1000, "ioregionfd"),
            (0x2000, "ioregionfd (writes are posted)"),
            (0x3000, "vmm"),
            (0x3020, "vmm"),
            (0x3028, "message"),
            (0x5000, "ioeventfd"),
            (0x5004, "message"),
            (0x6000, "mapped"),
            (0x7000, "message"),
        ],
    );
}

#[test]
fn what_is_forbidden_falls_to_the_next_path_that_is_offered() {
    let description = description(&[(0x6000, 0x2000)], vec![asked(0x4000, 0x3000, 0), signalled(0x5000, 4)]);
    let own = [(0, "message"), (0x3000, "vmm"), (0x3020, "vmm"), (0x3028, "message"), (0x4000, "ioregionfd")];
    let expect = |paths: &[PathName], rest: &[(u64, &str)]| {
        assert_lines(&description, AllowedPaths::only(paths), &[&own, rest].concat());
    };
    expect(
        &[PathName::Ioregionfd, PathName::Ioeventfd, PathName::Mapped],
        &[(0x5000, "ioeventfd"), (0x5004, "ioregionfd"), (0x6000, "mapped"), (0x8000, "message")],
    );
    expect(
        &[PathName::Ioregionfd],
        &[
            (0x5000, "ioregionfd (ioeventfd is forbidden by --paths)"),
            (0x5004, "ioregionfd"),
            (0x6000, "ioregionfd (mapped is forbidden by --paths)"),
            (0x7000, "message (mapped is forbidden by --paths)"),
            (0x8000, "message"),
        ],
    );
    assert_lines(
        &description,
        AllowedPaths::only(&[PathName::Mapped]),
        &[
            (0, "message"),
            (0x3000, "vmm"),
            (0x3020, "vmm"),
            (0x3028, "message"),
            (0x4000, "message (ioregionfd is forbidden by --paths; stand-in is forbidden by --paths)"),
            (
                0x5000,
                "message (ioeventfd is forbidden by --paths; ioregionfd is forbidden by --paths; stand-in is forbidden by --paths)",
            ),
            (0x5004, "message (ioregionfd is forbidden by --paths; stand-in is forbidden by --paths)"),
            (0x6000, "mapped (ioregionfd is forbidden by --paths; stand-in is forbidden by --paths)"),
            (0x8000, "message"),
        ],
    );
}

/// What lies behind an obstacle would be asked for with offsets that the server does not expect.
#[test]
fn an_ioregionfd_ends_where_something_is_in_its_way() {
    let in_the_way = "message (something else is in the way of ioregionfd)";
    let description = description(
        &[],
        vec![asked(0x1000, 0x4000, 0), asked(0x800, 0x1000, 0), asked(0x3010, 0x100, 0), asked(0x1000, 0x10, 0)],
    );
    assert_lines(
        &description,
        AllowedPaths::default(),
        &[
            (0, "message"),
            (0x800, "ioregionfd"),
            (0x1000, "ioregionfd (something else is in the way of ioregionfd)"),
            (0x1010, "ioregionfd (something else is in the way of ioregionfd)"),
            (0x1800, "ioregionfd"),
            (0x3000, "vmm (something else is in the way of ioregionfd)"),
            (0x3020, "vmm (something else is in the way of ioregionfd)"),
            (0x3028, in_the_way),
            (0x3110, in_the_way),
            (0x5000, "message"),
        ],
    );
    let paths = RegionPaths::choose(&description, 2, AllowedPaths::default(), AskedBy::Kvm);
    let ranges: Vec<_> = paths.ioregions.iter().map(|ioregion| ioregion.range.clone()).collect();
    assert_eq!(ranges, [0x1000..0x3000, 0x800..0x1000]);
}

#[test]
fn offers_that_kvm_has_no_name_for_go_by_message() {
    let mut no_socket = asked(0x3000, 0x10, 0);
    no_socket.fd = eventfd();
    no_socket.offset = 0x7000;
    let unfit = "message (KVM has no ioregionfd like the one offered)";
    let io_fds =
        vec![asked(0x4000, 0, IOREGION_POSTED_WRITES), asked(0x5000, 4, 1 << 7), no_socket, signalled(0x6000, 3)];
    assert_lines(
        &description(&[], io_fds),
        AllowedPaths::default(),
        &[
            (0, "message"),
            (0x3000, "vmm"),
            (0x3020, "vmm"),
            (0x3028, "message"),
            (0x4000, unfit),
            (0x4001, "message"),
            (0x5000, unfit),
            (0x5004, "message"),
            (0x6000, "message (KVM has no ioeventfd like the one offered)"),
            (0x6003, "message"),
            (0x7000, unfit),
            (0x7010, "message"),
        ],
    );
}

#[test]
fn pages_with_something_of_the_vmms_are_not_mapped() {
    let msix = [0x1800..0x1840, 0x3000..0x3008];
    assert_eq!(mappable(&region(0x8000, &[(0, 0x8000)]), &msix), [0..0x1000, 0x2000..0x3000, 0x4000..0x8000]);
}

#[test]
fn overlapping_areas_become_one_and_partial_pages_stay_out() {
    let areas = [(0x2000, 0x2000), (0, 0x3000), (0x6000, 0x800)];
    let mapped = mappable(&region(0x6800, &areas), &[]);
    assert_eq!(mapped.iter().map(|area| (area.start, area.end)).collect::<Vec<_>>(), [(0, 0x4000)]);
    assert!(mappable(&RegionInfo { fd: None, ..region(0x1000, &[(0, 0x1000)]) }, &[]).is_empty());
}

fn empty(size: u64) -> RegionPaths {
    RegionPaths { size, parts: Vec::new(), ioregions: Vec::new(), asked_by: AskedBy::Vmm, passed_over: Vec::new() }
}

#[test]
fn the_gaps_are_messages() {
    let part = |range| SubRange { range, path: Path::Msix };
    let parts = vec![part(0x10..0x20), part(0x40..0x100)];
    let paths = RegionPaths { parts, ..empty(0x100) };
    let ranges: Vec<_> = paths.complete().into_iter().map(|part| part.range).collect();
    assert_eq!(ranges, [0..0x10, 0x10..0x20, 0x20..0x40, 0x40..0x100]);
}
