//! With the feature `dpdk`: compiles the C half of that backend against the installed DPDK.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "dpdk")]
    dpdk();
}

#[cfg(feature = "dpdk")]
fn dpdk() {
    println!("cargo::rerun-if-changed=src/dpdk/shim.c");
    // The libraries are named one by one: all that `libdpdk` offers would be loaded at every start.
    let dpdk = pkg_config::Config::new()
        .range_version("22.11".."23")
        .cargo_metadata(false)
        .probe("libdpdk")
        .unwrap_or_else(|error| {
            println!("cargo::error=the feature dpdk needs DPDK 22.11: apt-get install libdpdk-dev ({error})");
            std::process::exit(1)
        });
    let mut build = cc::Build::new();
    build
        .file("src/dpdk/shim.c")
        .includes(&dpdk.include_paths)
        // DPDK's headers are written for its own build, which forces this one into every file.
        .flag("-include")
        .flag("rte_config.h")
        .define("ALLOW_EXPERIMENTAL_API", None)
        .extra_warnings(true)
        .flag_if_supported("-Wno-unused-parameter")
        .opt_level(3);
    if cfg!(target_arch = "x86_64") {
        // The least that DPDK runs on.
        build.flag("-march=corei7");
    }
    build.compile("neuwerk_dpdk");
    for path in &dpdk.link_paths {
        println!("cargo::rustc-link-search=native={}", path.display());
    }
    for library in [
        "rte_ethdev",
        "rte_mbuf",
        "rte_mempool",
        "rte_ring",
        "rte_net",
        "rte_eal",
    ] {
        println!("cargo::rustc-link-lib={library}");
    }
}
