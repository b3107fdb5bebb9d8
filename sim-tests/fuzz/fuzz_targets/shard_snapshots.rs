#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    nearring_sim::decoders::shard_snapshots(data);
});
