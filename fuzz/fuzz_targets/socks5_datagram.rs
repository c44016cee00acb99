#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    (conncept_fuzz::target("socks5_datagram").expect("it is in the list").run)(data);
});
