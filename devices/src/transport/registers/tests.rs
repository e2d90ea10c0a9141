use proptest::prelude::*;

use super::*;

const OFFERED: u64 = TRANSPORT_FEATURES | 1 << 6;

fn registers() -> CommonRegisters {
    CommonRegisters::new(OFFERED, 2)
}

fn read<const N: usize>(registers: &CommonRegisters, offset: usize) -> [u8; N] {
    let mut data = [0xaa; N];
    registers.read(offset, &mut data, false, 7);
    data
}

fn accept(registers: &mut CommonRegisters, features: u64) -> Action {
    for select in [0, 1] {
        registers.write(DRIVER_FEATURE_SELECT, &u32::to_le_bytes(select));
        registers.write(DRIVER_FEATURE, &half(features, select).to_le_bytes());
    }
    registers.write(STATUS, &[STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK])
}

fn enable(registers: &mut CommonRegisters, index: u16) -> Action {
    registers.write(QUEUE_SELECT, &index.to_le_bytes());
    registers.write(QUEUE_SIZE, &64u16.to_le_bytes());
    registers.write(QUEUE_DESCRIPTORS, &0x1_0000_1000u64.to_le_bytes());
    registers.write(QUEUE_DRIVER, &0x2000u32.to_le_bytes());
    registers.write(QUEUE_DEVICE, &0x3000u32.to_le_bytes());
    registers.write(QUEUE_ENABLE, &1u16.to_le_bytes())
}

#[test]
fn offered_features_are_read_by_halves() {
    let mut registers = registers();
    assert_eq!(read(&registers, DEVICE_FEATURE), half(OFFERED, 0).to_le_bytes());
    registers.write(DEVICE_FEATURE_SELECT, &1u32.to_le_bytes());
    assert_eq!(read(&registers, DEVICE_FEATURE), half(OFFERED, 1).to_le_bytes());
    registers.write(DEVICE_FEATURE_SELECT, &2u32.to_le_bytes());
    assert_eq!(read(&registers, DEVICE_FEATURE), [0; 4]);
}

#[test]
fn features_that_were_not_offered_or_lack_version_1_are_refused() {
    for features in [0, 1 << 6, FEATURE_VERSION_1 | 1 << 5] {
        let mut registers = registers();
        accept(&mut registers, features);
        assert_eq!(read(&registers, STATUS), [STATUS_ACKNOWLEDGE | STATUS_DRIVER]);
        assert_eq!(registers.write(STATUS, &[0x0f]), Action::None);
        assert!(!registers.is_running());
    }
}

#[test]
fn features_are_fixed_after_features_ok() {
    let mut registers = registers();
    accept(&mut registers, FEATURE_VERSION_1);
    assert_eq!(read(&registers, STATUS), [0x0b]);
    accept(&mut registers, OFFERED);
    assert_eq!(registers.features(), FEATURE_VERSION_1);
}

#[test]
fn driver_ok_starts_once_and_zero_resets() {
    let mut registers = registers();
    accept(&mut registers, OFFERED);
    assert_eq!(enable(&mut registers, 1), Action::None);
    assert_eq!(registers.write(STATUS, &[0x0f]), Action::Start);
    assert_eq!(registers.write(STATUS, &[0x0f]), Action::None);
    assert_eq!(enable(&mut registers, 0), Action::StartQueue(0));
    assert_eq!(registers.write(STATUS, &[0]), Action::Reset);
    registers.reset();
    assert_eq!(read(&registers, STATUS), [0]);
    assert_eq!(registers.queue(1), None);
}

#[test]
fn queues_keep_what_was_written_until_enabled_and_then_for_good() {
    let mut registers = registers();
    accept(&mut registers, OFFERED);
    enable(&mut registers, 0);
    assert_eq!(read(&registers, QUEUE_DESCRIPTORS), 0x1_0000_1000u64.to_le_bytes());
    registers.write(QUEUE_SIZE, &8u16.to_le_bytes());
    registers.write(QUEUE_DRIVER, &0x8000u32.to_le_bytes());
    let layout = QueueLayout::new(64, 0x1_0000_1000, 0x2000, 0x3000).unwrap().with_features(true, true);
    assert_eq!(registers.queue(0), Some(layout));
    assert_eq!(read(&registers, QUEUE_SIZE), 64u16.to_le_bytes());
}

#[test]
fn bad_queues_are_not_enabled() {
    for (offset, value) in
        [(QUEUE_SIZE, 0u16), (QUEUE_SIZE, 3), (QUEUE_SIZE, 512), (QUEUE_DESCRIPTORS, 8), (QUEUE_DEVICE, 2)]
    {
        let mut registers = registers();
        if offset == QUEUE_SIZE {
            registers.write(offset, &value.to_le_bytes());
        } else {
            registers.write(offset, &u32::from(value).to_le_bytes());
        }
        assert!(matches!(registers.write(QUEUE_ENABLE, &[1, 0]), Action::BadQueue(0, _)), "{offset:#x} {value}");
        assert_eq!(registers.queue(0), None);
    }
}

#[test]
fn vectors_out_of_range_read_back_as_no_vector() {
    let mut registers = registers();
    assert_eq!(registers.write(QUEUE_VECTOR, &[2, 0]), Action::QueueVector(0, 2));
    assert_eq!(registers.write(QUEUE_VECTOR, &[3, 0]), Action::QueueVector(0, NO_VECTOR));
    assert_eq!(read(&registers, QUEUE_VECTOR), NO_VECTOR.to_le_bytes());
    assert_eq!(registers.write(CONFIG_VECTOR, &[9, 0]), Action::ConfigVector(NO_VECTOR));
}

#[test]
fn a_queue_that_does_not_exist_reads_as_zero_and_ignores_writes() {
    let mut registers = registers();
    assert_eq!(enable(&mut registers, 2), Action::None);
    assert_eq!(read(&registers, QUEUE_SIZE), [0; 40]);
}

#[test]
fn a_reset_queue_can_be_enabled_again() {
    let mut registers = registers();
    accept(&mut registers, OFFERED);
    enable(&mut registers, 0);
    registers.write(STATUS, &[0x0f]);
    registers.write(QUEUE_VECTOR, &[1, 0]);
    assert_eq!(registers.write(QUEUE_RESET, &[1, 0]), Action::ResetQueue(0));
    // Until the worker has stopped, the queue says that it is being reset, and nothing helps.
    assert_eq!(registers.write(QUEUE_RESET, &[1, 0]), Action::None);
    assert_eq!(enable(&mut registers, 0), Action::None);
    assert_eq!(registers.write(QUEUE_VECTOR, &[1, 0]), Action::None);
    assert_eq!(read(&registers, QUEUE_RESET), [1, 0]);
    assert_eq!(read(&registers, QUEUE_ENABLE), [1, 0]);
    assert_eq!(registers.queue(0), None);
    registers.reset_queue(0);
    registers.reset_queue(1);
    assert_eq!(read(&registers, QUEUE_RESET), [0; 2]);
    assert_eq!(read(&registers, QUEUE_ENABLE), [0; 2]);
    assert_eq!(read(&registers, QUEUE_VECTOR), NO_VECTOR.to_le_bytes());
    assert_eq!(read(&registers, QUEUE_SIZE), MAX_QUEUE_SIZE.to_le_bytes());
    assert_eq!(read(&registers, QUEUE_DESCRIPTORS), [0; 8]);
    assert_eq!(enable(&mut registers, 0), Action::StartQueue(0));
}

#[test]
fn a_reset_shows_the_old_status_and_takes_no_writes_until_it_is_over() {
    let mut registers = registers();
    accept(&mut registers, OFFERED);
    registers.write(STATUS, &[0x0f]);
    assert_eq!(registers.write(STATUS, &[0]), Action::Reset);
    registers.begin_reset();
    for status in [0, 1, 3, 0x80] {
        assert_eq!(registers.write(STATUS, &[status]), Action::None);
        assert_eq!(read(&registers, STATUS), [0x0f]);
    }
    assert_eq!(enable(&mut registers, 0), Action::None);
    registers.reset();
    assert_eq!(read(&registers, STATUS), [0]);
    assert_eq!(registers.write(STATUS, &[1]), Action::None);
    assert_eq!(read(&registers, STATUS), [1]);
}

proptest! {
    #[test]
    fn any_access_is_harmless(accesses in prop::collection::vec((0usize..80, prop::collection::vec(any::<u8>(), 0..12)), 0..64)) {
        let mut registers = registers();
        for (offset, mut data) in accesses {
            if registers.write(offset, &data) == Action::Reset {
                registers.reset();
            }
            registers.read(offset, &mut data, true, 0);
        }
    }
}
