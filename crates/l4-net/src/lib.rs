pub mod relay;
pub mod udp;
