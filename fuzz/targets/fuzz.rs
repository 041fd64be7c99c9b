//! The engine's entry; `MODAX_FUZZ` names the target.
#![no_main]

use std::sync::LazyLock;

use modax_fuzz::Target;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("MODAX_FUZZ").expect("MODAX_FUZZ names a target");
    modax_fuzz::target(&name).unwrap_or_else(|| panic!("no target is called {name}"))
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| (TARGET.check)(data));
