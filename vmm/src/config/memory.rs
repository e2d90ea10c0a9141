//! `--memory SIZE[,hugepages=on]`.

use outrigger_process::options::Options;

use super::Problem;
use super::size::Size;

/// Least guest RAM: what a small kernel needs to say why it cannot go on.
pub const MIN: Size = Size(32 << 20);
/// Most guest RAM.
pub const MAX: Size = Size(1 << 40);
/// Guest RAM where `--memory` gives none.
pub const DEFAULT: Size = Size(512 << 20);

const PAGE: Size = Size(4 << 10);
const HUGE_PAGE: Size = Size(2 << 20);

/// Guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryConfig {
    /// Bytes: [`MIN`] to [`MAX`], a multiple of 4 KiB, or of 2 MiB with huge pages.
    pub size: u64,
    /// Backed by 2 MiB pages of the host's pool (`vm.nr_hugepages`).
    pub hugepages: bool,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        MemoryConfig { size: DEFAULT.0, hugepages: false }
    }
}

impl MemoryConfig {
    /// Reads the option's value. `size=SIZE` is taken too, as Cloud Hypervisor writes it.
    pub(crate) fn parse(text: &str) -> Result<Self, Problem> {
        let options = Options::parse(text, &["size", "hugepages"], Some("size"))?;
        let text = options.required("size", "SIZE")?;
        let hugepages = options.switch("hugepages")?;
        let size = Size::parse(text)?;
        if !(MIN..=MAX).contains(&size) {
            // "--memory 512": a number of MiB to Firecracker, of bytes here.
            let meant = Some(size.0).filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
            let meant = meant.and_then(|number| number.checked_mul(1 << 20)).map(Size);
            let meant = meant.filter(|size| (MIN..=MAX).contains(size));
            return Err(Problem::SizeNotBetween { min: MIN, max: MAX, meant });
        }
        let page = if hugepages { HUGE_PAGE } else { PAGE };
        if !size.0.is_multiple_of(page.0) {
            return Err(Problem::NotAligned { page, huge: hugepages });
        }
        Ok(MemoryConfig { size: size.0, hugepages })
    }
}
