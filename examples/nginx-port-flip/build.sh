#!/bin/sh
# build.sh -- Compiles the service into ./release; deployrt runs it before anything else (hooks.build).
set -eu
rm -rf release.new
mkdir release.new
javac -d release.new Service.java
echo "${RELEASE:-1.0}" > release.new/VERSION
rm -rf release
mv release.new release
