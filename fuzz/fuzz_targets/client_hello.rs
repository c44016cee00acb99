#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    (conncept_fuzz::target("client_hello").expect("it is in the list").run)(data);
});
