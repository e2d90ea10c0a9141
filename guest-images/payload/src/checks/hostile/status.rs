//! Device status, features, and the registers around them, in orders and widths that no driver uses (virtio 1.2, 2.1, 2.2, 2.4, 3.1 and
//! 4.1.4.3).

use super::arena::{READABLE, WRITABLE};
use super::instructions::{load, store};
use super::outcome::{Outcome, equal, holds, pause, soon};
use super::queue::Queue;
use super::queues::{full_queue, stays_quiet};
use super::request::{buffers, header, serves};
use super::target::{Target, VERSION_1};
use super::{Attack, attack};
use crate::memory::{read8, read16, read32, write8, write16, write32};
use crate::virtio::{
    ACKNOWLEDGE, COMMON_SIZE, CONFIG_VECTOR, DRIVER, DRIVER_FEATURE_SELECT, DRIVER_FEATURES, DRIVER_OK, FAILED,
    FEATURE_SELECT, FEATURES, FEATURES_OK, NEEDS_RESET, QUEUE_SELECT, QUEUE_VECTOR, STATUS,
};

const FEATURES_KEPT: &str = "virtio 1.2, 2.2.1 and 3.1.1: FEATURES_OK ends negotiation";
const NOT_OFFERED: &str = "virtio 1.2, 2.2.2: features that were not offered are not accepted";
const NO_MORE_FEATURES: &str = "virtio 1.2, 4.1.4.3.1: zero beyond the last feature";
const GIVEN_UP: &str = "virtio 1.2, 2.1.2 and 3.1: no buffers without DRIVER_OK, or after FAILED";
const RESET: &str = "virtio 1.2, 2.4.1";
const AFTER_ERROR: &str = "virtio 1.2, 2.1.2: nothing after DEVICE_NEEDS_RESET";
const WIDTHS: &str = "virtio 1.2, 4.1.3.1: only a field's own width";
const ISR_READ: &str = "virtio 1.2, 4.1.4.5.1";
const READ_ONLY: &str = "virtio 1.2, 2.5: what the driver cannot write";
const OPEN: &str = "left open: a reset brings it back";

pub const ATTACKS: &[Attack] = &[
    attack("driver-ok-without-features-ok", GIVEN_UP, |target| {
        target.begin()?;
        let queue = Queue::small(target.main());
        target.configure(queue);
        target.enable();
        write8(target.common + STATUS, ACKNOWLEDGE | DRIVER | DRIVER_OK);
        header();
        target.request(queue.index, 0, &buffers());
        target.is_ignored()
    }),
    attack("driver-ok-alone", GIVEN_UP, |target| {
        target.begin()?;
        let queue = Queue::small(target.main());
        target.configure(queue);
        target.enable();
        write8(target.common + STATUS, DRIVER_OK);
        header();
        target.request(queue.index, 0, &buffers());
        target.is_ignored()
    }),
    attack("features-that-were-not-offered", NOT_OFFERED, |target| {
        let features = target.offered() | 1 << 50 | 1 << 63;
        refused(target, features)
    }),
    attack("all-features-there-could-be", NOT_OFFERED, |target| refused(target, u64::MAX)),
    attack("one-feature-that-was-not-offered", NOT_OFFERED, |target| {
        let missing = !target.offered();
        let features = target.features() | missing & missing.wrapping_neg();
        refused(target, features)
    }),
    attack("features-without-version-1", "virtio 1.2, 6.2: a device may refuse that", |target| {
        target.begin()?;
        write8(target.common + STATUS, ACKNOWLEDGE | DRIVER);
        let features = target.features() & !VERSION_1;
        target.accept(features);
        write8(target.common + STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        write8(target.common + STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        Ok(())
    }),
    attack("features-change-after-features-ok", FEATURES_KEPT, |target| {
        target.start()?;
        header();
        let words = |target: &Target| {
            [0, 1].map(|word| {
                write32(target.common + DRIVER_FEATURE_SELECT, word);
                read32(target.common + DRIVER_FEATURES)
            })
        };
        let before = words(target);
        for features in [0, u64::MAX, target.offered()] {
            target.accept(features);
            let after = words(target);
            equal("accepted features, low", after[0], before[0])?;
            equal("accepted features, high", after[1], before[1])?;
        }
        serves(target)
    }),
    attack("features-ok-again-with-others", FEATURES_KEPT, |target| {
        let features = target.features();
        target.negotiate(features)?;
        target.accept(u64::MAX);
        write8(target.common + STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        equal("status", target.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK)
    }),
    attack("feature-words-that-do-not-exist", NO_MORE_FEATURES, |target| {
        for select in [2, 3, 32, 0x8000_0000, u32::MAX] {
            write32(target.common + FEATURE_SELECT, select);
            equal("offered features beyond the last", read32(target.common + FEATURES), 0u32)?;
            write32(target.common + DRIVER_FEATURE_SELECT, select);
            write32(target.common + DRIVER_FEATURES, u32::MAX);
        }
        Ok(())
    }),
    attack("written-to-words-that-do-not-exist", NOT_OFFERED, |target| {
        let features = target.features();
        target.begin()?;
        write8(target.common + STATUS, ACKNOWLEDGE | DRIVER);
        target.accept(features);
        write32(target.common + DRIVER_FEATURE_SELECT, 2);
        write32(target.common + DRIVER_FEATURES, 0);
        write8(target.common + STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        equal("status", target.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK)
    }),
    attack("bits-are-cleared", OPEN, |target| {
        target.start()?;
        header();
        for value in [ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, ACKNOWLEDGE | DRIVER | FEATURES_OK] {
            write8(target.common + STATUS, value);
        }
        target.request(target.main(), 0, &buffers());
        target.is_left_open()
    }),
    attack("failed", GIVEN_UP, |target| {
        let features = target.features();
        target.negotiate(features)?;
        let queue = Queue::small(target.main());
        target.configure(queue);
        target.enable();
        write8(target.common + STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | FAILED);
        write8(target.common + STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | FAILED | DRIVER_OK);
        header();
        target.request(queue.index, 0, &buffers());
        target.is_ignored()
    }),
    attack("needs-reset-written-by-the-driver", "virtio 1.2, 2.1: a bit of the device's", |target| {
        target.start()?;
        header();
        write8(target.common + STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | NEEDS_RESET);
        holds("no reset is needed", !target.needs_reset())?;
        serves(target)
    }),
    attack("every-value-in-turn", OPEN, |target| {
        target.start()?;
        for value in 1..=u8::MAX {
            write8(target.common + STATUS, value);
        }
        read8(target.common + STATUS);
        Ok(())
    }),
    attack("every-value-after-a-reset", OPEN, |target| {
        target.come_home();
        for value in 1..=u8::MAX {
            write8(target.common + STATUS, 0);
            write8(target.common + STATUS, value);
        }
        Ok(())
    }),
    attack("driver-ok-again", OPEN, |target| {
        target.start()?;
        header();
        serves(target)?;
        target.ready();
        target.ready();
        serves(target)
    }),
    attack("reset-again-and-again", RESET, |target| {
        target.start()?;
        (0..100).for_each(|_| write8(target.common + STATUS, 0));
        target.reset()
    }),
    attack("reset-with-a-full-queue", RESET, |target| {
        target.start_large()?;
        let queue = full_queue(target);
        target.reset()?;
        stays_quiet(target, queue)
    }),
    attack("reset-with-a-request-each-time", RESET, |target| {
        for _ in 0..10 {
            target.start()?;
            header();
            let main = target.main();
            target.request(main, 0, &buffers());
            let queue = *target.queue();
            target.reset()?;
            stays_quiet(target, queue)?;
        }
        Ok(())
    }),
    attack("reset-forgets-everything", RESET, |target| {
        target.start()?;
        target.reset()?;
        write16(target.common + QUEUE_SELECT, target.main());
        equal("queue vector", read16(target.common + QUEUE_VECTOR), 0xffffu16)?;
        equal("configuration vector", read16(target.common + CONFIG_VECTOR), 0xffffu16)?;
        equal("enable bit", read16(target.common + 28), 0u16)?;
        for word in [0, 1] {
            write32(target.common + DRIVER_FEATURE_SELECT, word);
            equal("accepted features", read32(target.common + DRIVER_FEATURES), 0u32)?;
        }
        Ok(())
    }),
    attack("doorbells-after-an-error", AFTER_ERROR, |target| {
        target.start()?;
        header();
        target.submit(0xffff);
        target.is_refused()?;
        for index in 0..target.count() {
            target.ring(index);
        }
        *target.queue() = Queue { offered: 0, ..*target.queue() };
        target.request(target.main(), 0, &buffers());
        pause();
        equal("chains used", target.queue().unseen(), 0u16)?;
        holds("the device still needs a reset", target.needs_reset())
    }),
    attack("status-of-other-widths", WIDTHS, |target| {
        target.start()?;
        header();
        let before = target.status();
        for width in [2, 4, 8] {
            store(target.common + STATUS, width, u64::from(before));
        }
        equal("status", target.status(), before)
    }),
    attack("accesses-across-fields", OPEN, |target| {
        target.start()?;
        for offset in 0..COMMON_SIZE {
            for width in [2, 4, 8] {
                if offset % width != 0 {
                    store(target.common + offset, width, u64::MAX);
                    load(target.common + offset, width);
                }
            }
        }
        Ok(())
    }),
    attack("every-register-by-bytes", OPEN, |target| {
        target.start()?;
        for offset in 0..COMMON_SIZE + 4 {
            store(target.common + offset, 1, 0xff);
            load(target.common + offset, 1);
        }
        Ok(())
    }),
    attack("isr-is-read-and-written", ISR_READ, |target| {
        target.start()?;
        header();
        serves(target)?;
        for width in [1, 2, 4, 8] {
            store(target.isr, width, u64::MAX);
        }
        load(target.isr, 1);
        equal("interrupt status after it was read", load(target.isr, 1), 0u64)
    }),
    attack("isr-by-intx", ISR_READ, |target| {
        target.start()?;
        header();
        target.msix.control(false, false);
        serves(target)?;
        holds("the queue's bit", soon(|| read8(target.isr) & 1 != 0))?;
        equal("interrupt status after it was read", read8(target.isr), 0u8)
    }),
    attack("configuration-that-cannot-be-written", READ_ONLY, |target| {
        target.start()?;
        header();
        // The first eight bytes: a disk's capacity, a card's address and link.
        let before = load(target.config, 8);
        for width in [1, 2, 4, 8] {
            store(target.config, width, !before);
        }
        equal("configuration", load(target.config, 8), before)?;
        serves(target)
    }),
    attack("configuration-beyond-its-end", OPEN, |target| {
        target.start()?;
        header();
        for offset in (0..0x1000).step_by(60) {
            store(target.config + offset, 4, u64::MAX);
            load(target.config + offset, 8);
        }
        serves(target)
    }),
    attack("random-registers", OPEN, |target| {
        target.start()?;
        let (registers, isr) = (target.registers, target.isr - target.registers);
        for _ in 0..300 {
            let structures = [0, 0, 0, isr, target.config - registers, target.doorbells - registers];
            let offset = target.random.of(&structures) + target.random.below(0x44);
            let width = target.random.of(&[1, 2, 2, 4, 8]);
            let value = target.random.of(&[0, 1, 2, 0xff, 0xffff, u64::MAX, WRITABLE, READABLE]);
            if target.random.below(4) == 0 {
                load(registers + offset, width);
            } else {
                store(registers + offset, width, value);
            }
        }
        // It may have been told to use any of these.
        target.arena.offer(READABLE, 0x3000);
        Ok(())
    }),
];

/// The device does not keep FEATURES_OK, nor DRIVER_OK after it.
fn refused(target: &mut Target, features: u64) -> Outcome {
    target.begin()?;
    write8(target.common + STATUS, ACKNOWLEDGE | DRIVER);
    target.accept(features);
    write8(target.common + STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    equal("FEATURES_OK", target.status() & FEATURES_OK, 0u8)?;
    let queue = Queue::small(target.main());
    target.configure(queue);
    target.enable();
    write8(target.common + STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    header();
    target.request(queue.index, 0, &buffers());
    target.is_ignored()
}
