#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    (conncept_fuzz::target("http_request").expect("it is in the list").run)(data);
});
