use std::collections::BTreeSet;

use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::*;

fn start(page_size: u64, ranges: &[(u64, u64)]) -> Result<DirtyLog, Errno> {
    let num_ranges = u32::try_from(ranges.len()).unwrap();
    let control = wire::DmaLoggingControl { page_size, num_ranges, reserved: 0 };
    let ranges = ranges.iter().flat_map(|&(iova, length)| [iova, length]).collect::<Vec<_>>();
    DirtyLog::start(&[control.as_bytes(), ranges.as_bytes()].concat())
}

fn report(iova: u64, length: u64, page_size: u64) -> Result<Report, Errno> {
    Report::parse(wire::DmaLoggingReport { iova, length, page_size }.as_bytes(), 1 << 20)
}

/// The bits that are set.
fn taken(log: &DirtyLog, iova: u64, length: u64, page_size: u64) -> Vec<u64> {
    let bitmap = log.take(&report(iova, length, page_size).unwrap());
    let bits = 0..bitmap.len() as u64 * 64;
    bits.filter(|bit| bitmap[usize::try_from(bit / 64).unwrap()] & 1 << (bit % 64) != 0).collect()
}

#[test]
fn ranges_that_are_empty_wrap_or_overlap_are_refused() {
    for ranges in [&[(0, 0)][..], &[(u64::MAX, 2)], &[(0, 4096), (4095, 1)], &[(8192, 1), (0, u64::MAX)], &[(5, 1); 2]]
    {
        assert_eq!(start(4096, ranges).unwrap_err(), Errno::EINVAL, "{ranges:?}");
    }
    start(4096, &[(8192, 1), (0, 8192), (u64::MAX, 1)]).unwrap();
}

#[test]
fn page_sizes_that_are_no_powers_of_two_are_refused() {
    for page_size in [0, 3, 4095, u64::MAX] {
        assert_eq!(start(page_size, &[]).unwrap_err(), Errno::EINVAL);
        assert_eq!(report(0, 4096, page_size).unwrap_err(), Errno::EINVAL);
    }
}

#[test]
fn more_ranges_than_the_limit_are_refused() {
    let ranges: Vec<_> = (0..=u64::from(MAX_RANGES)).map(|i| (i * 4096, 4096)).collect();
    assert_eq!(start(4096, &ranges).unwrap_err(), Errno::E2BIG);
    start(4096, &ranges[1..]).unwrap();
}

#[test]
fn reports_longer_than_the_limit_are_refused_before_anything_is_allocated() {
    let most = ((1 << 20) - 24) / 8 * 64;
    assert_eq!(report(0, most, 1).unwrap().reply_size(), 1 << 20);
    for length in [most + 1, u64::MAX] {
        assert_eq!(report(0, length, 1).unwrap_err(), Errno::E2BIG);
    }
}

#[test]
fn what_is_reported_is_forgotten_but_not_the_rest_of_a_page() {
    let log = start(4096, &[]).unwrap();
    log.mark(4096, 1);
    assert_eq!(taken(&log, 0, 4097, 4096), [1]);
    assert_eq!(taken(&log, 0, 16384, 4096), [1], "only a byte of the page was reported");
    assert!(taken(&log, 0, 16384, 4096).is_empty());
}

#[test]
fn the_ends_of_the_address_space_are_no_special_case() {
    let log = start(4096, &[(0, 1), (u64::MAX, 1)]).unwrap();
    log.mark(0, 1);
    log.mark(u64::MAX, 1);
    log.mark(u64::MAX, 2);
    log.mark(0, 0);
    assert_eq!(taken(&log, 0, u64::MAX, 1 << 63), [0, 1]);
    assert_eq!(taken(&log, u64::MAX, 1, 1), [0]);
}

#[test]
fn when_too_much_is_noted_everything_counts_as_written() {
    let log = start(4096, &[]).unwrap();
    for chunk in 0..=MAX_CHUNKS as u64 {
        log.mark(chunk * CHUNK_PAGES * PAGE, 1);
    }
    assert_eq!(taken(&log, 1 << 50, 65 * 4096, 4096), (0..65).collect::<Vec<_>>());
    assert!(log.pages().chunks.is_empty());
}

proptest! {
    #[test]
    fn every_written_byte_of_a_range_is_reported_once(
        ranges in prop::collection::btree_map(0u64..40, 1u64..3, 0..4),
        writes in prop::collection::vec((0u64..40 * 4096, 1usize..9000), 0..12),
        (from, length, shift) in (0u64..20 * 4096, 1u64..30 * 4096, 9u32..15),
    ) {
        // Ranges begin on even pages and are at most two pages long, so that they never overlap.
        let ranges: Vec<_> = ranges.iter().map(|(&at, &pages)| (at * 2 * 4096, pages * 4096)).collect();
        let log = start(4096, &ranges).unwrap();
        let mut dirty = BTreeSet::new();
        for &(address, length) in &writes {
            log.mark(address, length);
            let wanted = |byte: &u64| ranges.is_empty() || ranges.iter().any(|r| (r.0..r.0 + r.1).contains(byte));
            dirty.extend((address..address + length as u64).filter(wanted).map(|byte| byte / 4096));
        }
        let page_size = 1u64 << shift;
        let expected = (0..length.div_ceil(page_size)).filter(|unit| {
            let first = from + unit * page_size;
            let last = (first + page_size - 1).min(from + length - 1);
            (first / 4096..=last / 4096).any(|page| dirty.contains(&page))
        });
        prop_assert_eq!(taken(&log, from, length, page_size), expected.collect::<Vec<_>>());
        let whole = |page: &u64| page * 4096 >= from && (page + 1) * 4096 <= from + length;
        dirty.retain(|page| !whole(page));
        prop_assert_eq!(taken(&log, 0, 100 * 4096, 4096), dirty.into_iter().collect::<Vec<_>>());
    }
}
