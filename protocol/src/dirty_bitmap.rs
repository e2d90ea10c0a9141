//! The size of a bitmap that says which memory a device has written (specification:
//! "`VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT`").

/// How many 64-bit words of bitmap stand for `length` bytes, one bit for each page or part of one.
/// `None`: the range is empty or wraps, or `page_size` is not a power of two.
pub(crate) fn words(iova: u64, length: u64, page_size: u64) -> Option<u64> {
    if length == 0 || !page_size.is_power_of_two() || iova.checked_add(length - 1).is_none() {
        return None;
    }
    Some(length.div_ceil(page_size).div_ceil(64))
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn ranges_and_page_sizes_that_make_no_sense_have_no_words() {
        for (iova, length, page_size) in
            [(0, 0, 4096), (0, 4096, 0), (0, 4096, 3), (0, 4096, u64::MAX), (u64::MAX, 2, 4096), (2, u64::MAX, 4096)]
        {
            assert_eq!(words(iova, length, page_size), None, "{iova:#x} {length:#x} {page_size:#x}");
        }
    }

    #[test]
    fn parts_of_pages_and_of_words_are_counted() {
        assert_eq!(words(0, 1, 4096), Some(1));
        assert_eq!(words(0, 64 * 4096, 4096), Some(1));
        assert_eq!(words(5, 64 * 4096 + 1, 4096), Some(2));
        assert_eq!(words(0, u64::MAX, 1), Some(1 << 58));
        assert_eq!(words(u64::MAX, 1, 1 << 63), Some(1));
    }
}
