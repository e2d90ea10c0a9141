//! The capabilities of a region: a chain within the reply that describes it (specification: "VFIO region capabilities").

use zerocopy::FromBytes;

use crate::codec::structures;
use crate::wire;

/// Mappable areas are multiples of this, in bytes.
pub(super) const PAGE: u64 = 4096;
/// No region needs more; a chain that is longer is a loop.
const MAX_CAPABILITIES: usize = 16;

/// The capabilities that are known; others are skipped.
#[derive(Debug, Default)]
pub(super) struct RegionCapabilities {
    /// The mappable areas as (offset in the region, size), checked and sorted. `None`: the whole region.
    pub(super) sparse: Option<Vec<(u64, u64)>>,
    pub(super) region_type: Option<wire::CapType>,
}

impl RegionCapabilities {
    /// Walks the chain, which starts `cap_offset` bytes into `payload`, to its end.
    pub(super) fn parse(payload: &[u8], cap_offset: u32, region_size: u64) -> Result<Self, &'static str> {
        let mut capabilities = Self::default();
        let mut next = cap_offset as usize;
        for _ in 0..MAX_CAPABILITIES {
            if next == 0 {
                return Ok(capabilities);
            }
            if next < size_of::<wire::RegionInfo>() {
                return Err("a region capability lies within the region info");
            }
            let bytes = payload.get(next..).ok_or("a region capability lies beyond the message")?;
            let (header, bytes) =
                wire::CapHeader::read_from_prefix(bytes).map_err(|_| "a region capability is cut off")?;
            next = header.next as usize;
            let again = match header.id {
                wire::REGION_CAP_SPARSE_MMAP => {
                    capabilities.sparse.replace(sparse_areas(bytes, region_size)?).is_some()
                }
                wire::REGION_CAP_TYPE => {
                    let region_type = wire::CapType::read_from_prefix(bytes);
                    let (region_type, _) = region_type.map_err(|_| "a region type is cut off")?;
                    capabilities.region_type.replace(region_type).is_some()
                }
                _ => false,
            };
            if again {
                return Err("a region capability comes twice");
            }
        }
        Err("the region capabilities form a loop")
    }
}

fn sparse_areas(bytes: &[u8], region_size: u64) -> Result<Vec<(u64, u64)>, &'static str> {
    let (sparse, bytes) =
        wire::SparseMmap::read_from_prefix(bytes).map_err(|_| "a sparse-mmap capability is cut off")?;
    let length = (sparse.nr_areas as usize).checked_mul(size_of::<wire::SparseMmapArea>());
    let areas = length.and_then(|length| bytes.get(..length));
    let areas = areas.ok_or("a sparse-mmap capability has fewer areas than it says")?;
    let areas: Vec<wire::SparseMmapArea> = structures(areas).collect();
    let legal = |area: &wire::SparseMmapArea| {
        area.offset.checked_add(area.size).is_some_and(|end| end <= region_size)
            && area.offset.is_multiple_of(PAGE)
            && area.size.is_multiple_of(PAGE)
    };
    if !areas.iter().all(legal) {
        return Err("a sparse-mmap area is misaligned or beyond its region");
    }
    let areas = areas.iter().filter(|area| area.size > 0).map(|area| (area.offset, area.size));
    let mut areas: Vec<(u64, u64)> = areas.collect();
    areas.sort_unstable();
    if areas.windows(2).any(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
        return Err("sparse-mmap areas overlap");
    }
    Ok(areas)
}
