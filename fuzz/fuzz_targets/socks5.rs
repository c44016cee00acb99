#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    (conncept_fuzz::target("socks5").expect("it is in the list").run)(data);
});
