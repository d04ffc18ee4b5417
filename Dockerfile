# The binary is built in one stage, and the image is made from another, which adds nothing but the
# binary to a minimal Debian. Both base images are pinned by the digest of their index for all
# architectures; a tool that updates dependencies, such as Dependabot or Renovate, changes tag and
# digest together.
FROM rust:1.97.0-slim-bookworm@sha256:6d220bf85c74e842a79da63997af8d2e74455c0b8847d8bb3a5888572334991d AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock build.rs README.md ./
COPY proto proto
COPY migrations migrations
COPY benches benches
COPY tests/support tests/support
COPY verification verification
COPY clients/rust clients/rust
COPY clients/situations/drivers/rust clients/situations/drivers/rust
COPY examples/axum examples/axum
COPY src src
RUN cargo build --release --locked --bin countersign

FROM debian:bookworm-slim@sha256:7b140f374b289a7c2befc338f42ebe6441b7ea838a042bbd5acbfca6ec875818
# The service does not run as root, because it needs nothing but its data directory.
RUN useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin countersign \
    && install -d -o countersign -g countersign -m 700 /data
COPY --from=build /src/target/release/countersign /usr/local/bin/countersign
USER countersign
VOLUME /data
EXPOSE 50051 8080
# Within its container the service must listen on all addresses. So it starts only with TLS and
# callers in its configuration, or with COUNTERSIGN_INSECURE=true where a proxy in front encrypts
# and authenticates.
ENV COUNTERSIGN_LISTEN=0.0.0.0:50051 \
    COUNTERSIGN_HTTP_LISTEN=0.0.0.0:8080 \
    COUNTERSIGN_DATA_DIR=/data
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["countersign", "health"]
ENTRYPOINT ["countersign"]
CMD ["serve"]
