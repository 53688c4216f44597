# One image for the API and for nodes. Over 7 GB, because the pinned torch is the CUDA build.
FROM python:3.11-slim
WORKDIR /stenopool
COPY requirements.txt requirements-nodes.txt ./
COPY scripts/setup scripts/setup
RUN scripts/setup requirements.txt && scripts/setup requirements.txt requirements-nodes.txt
COPY . .
EXPOSE 8000
CMD ["scripts/serve"]
