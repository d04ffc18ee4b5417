# Built in one stage, run in another that holds nothing but the binary and its C library.
FROM rust:1-slim-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock build.rs README.md ./
COPY proto proto
COPY migrations migrations
COPY benches benches
COPY tests/support tests/support
COPY src src
RUN cargo build --release --locked --bin countersign

FROM debian:bookworm-slim
# Not root: the service needs nothing but its data directory.
RUN useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin countersign \
    && install -d -o countersign -g countersign -m 700 /data
COPY --from=build /src/target/release/countersign /usr/local/bin/countersign
USER countersign
VOLUME /data
EXPOSE 50051 8080
# Within its container the service must listen on all addresses, and so it starts only with TLS and callers in its configuration, or
# with COUNTERSIGN_INSECURE=true where a proxy in front encrypts and authenticates.
ENV COUNTERSIGN_LISTEN=0.0.0.0:50051 \
    COUNTERSIGN_HTTP_LISTEN=0.0.0.0:8080 \
    COUNTERSIGN_DATA_DIR=/data
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["countersign", "health"]
ENTRYPOINT ["countersign"]
CMD ["serve"]
