#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    (conncept_fuzz::target("proxy_tlv").expect("it is in the list").run)(data);
});
