# One image for every process: `docker run … staybus run ingress`. Python as in the tests.
FROM python:3.11-slim-bookworm AS build

ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_PYTHON_DOWNLOADS=never UV_PROJECT_ENVIRONMENT=/opt/staybus
RUN pip install --no-cache-dir uv
WORKDIR /src

# The dependencies first: they change less often than the code.
COPY pyproject.toml uv.lock ./
RUN uv sync --locked --no-dev --no-install-project

COPY . .
RUN uv sync --locked --no-dev --no-editable


FROM python:3.11-slim-bookworm

# The volume of the key file takes the owner of this folder when it is first used.
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin staybus \
    && install -d -m 0700 -o staybus -g staybus /var/lib/staybus
COPY --from=build /opt/staybus /opt/staybus

ENV PATH=/opt/staybus/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    STAYBUS_HOST=0.0.0.0 \
    STAYBUS_KEY_FILE=/var/lib/staybus/key
USER staybus
WORKDIR /var/lib/staybus
EXPOSE 8080 9101 9102 9103
ENTRYPOINT ["staybus"]
CMD ["--help"]
