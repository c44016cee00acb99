#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    (conncept_fuzz::target("socks5_server").expect("it is in the list").run)(data);
});
