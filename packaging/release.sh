#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# release.sh KEY: makes all files of a release from a clean tree, signed with the GnuPG key of
# that fingerprint. For each architecture, in dist:
#
#   meshd_VERSION-1_ARCH.deb         the package
#   meshd-VERSION-linux-ARCH.tar.gz  the same program and files, for other distributions
#
# and for all of them meshd-VERSION.cdx.json, the bill of materials; SHA256SUMS, signed in
# SHA256SUMS.asc; and apt, the repository. The same commit, compiler and dpkg give the same
# bytes, but for signatures. From the environment:
#
#   ARCHS  Debian's names of architectures, "amd64 arm64 armhf" unless set
#   DIST   where the files go, dist unless set
#   URL    where the apt repository will be
set -euo pipefail
umask 022
cd "$(dirname "$(realpath "$0")")/.."
DIST=$(realpath -m "${DIST:-dist}")
ARCHS=${ARCHS:-amd64 arm64 armhf}
if [[ $# -ne 1 || -z $1 ]]; then
	echo 'release: which key signs it? make release KEY=FINGERPRINT; gpg --list-secret-keys shows yours' >&2
	exit 2
fi
key=$1
if ! gpg --batch --list-secret-keys "$key" >/dev/null 2>&1; then
	echo "release: gpg has no secret key $key" >&2
	exit 2
fi
changed=$(git status --porcelain)
if [[ -n $changed ]]; then
	printf 'release: the tree has changes that no commit has; commit or remove them:\n%s\n' "$changed" >&2
	exit 2
fi
VERSION=$(packaging/version.sh)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export DIST ARCHS VERSION SOURCE_DATE_EPOCH LC_ALL=C TZ=UTC GOTOOLCHAIN=local
if [[ $VERSION == *dev* ]]; then
	echo "release: this commit has no tag v${VERSION%%[~+]*}, so it becomes the development version $VERSION" >&2
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Makes the tarball of an architecture from its package, so both have the same files.
tarball() {
	local arch=$1 files=$work/$1 name=meshd-$VERSION-linux-$1
	local root=$work/tar-$1/$name
	dpkg-deb -x "$DIST/meshd_$VERSION-1_$arch.deb" "$files"
	mkdir -p "$root/completions"
	cp -p "$files/usr/bin/meshd" "$root/"
	cp -p LICENSE CHANGELOG.md "$root/"
	gzip -dc "$files/usr/share/doc/meshd/notices.gz" >"$root/NOTICES"
	cp -rp "$files/usr/share/doc/meshd/examples" "$files/usr/share/man" "$root/"
	cp -rp packaging/systemd "$root/systemd"
	cp -p "$files/usr/share/bash-completion/completions/meshd" "$root/completions/meshd.bash"
	cp -p "$files/usr/share/zsh/vendor-completions/_meshd" "$files/usr/share/fish/vendor_completions.d/meshd.fish" "$root/completions/"
	find "$root" -type f ! -path "$root/meshd" -exec chmod 0644 {} +
	find "$root" -type d -exec chmod 0755 {} +
	tar -C "$work/tar-$arch" --sort=name --format=gnu --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -c "$name" |
		gzip -9n >"$DIST/$name.tar.gz"
	echo "$DIST/$name.tar.gz"
}

packaging/deb/build.sh
files=()
binaries=()
for arch in $ARCHS; do
	tarball "$arch"
	files+=("meshd_$VERSION-1_$arch.deb" "meshd-$VERSION-linux-$arch.tar.gz")
	binaries+=("$work/$arch/usr/bin/meshd")
done
bill=meshd-$VERSION.cdx.json
go run ./packaging/sbom -version "$VERSION" -time "$SOURCE_DATE_EPOCH" "${binaries[@]}" >"$DIST/$bill"
echo "$DIST/$bill"
(cd "$DIST" && sha256sum "${files[@]}" "$bill" >SHA256SUMS)
gpg --batch --yes --local-user "$key" --armor --detach-sign --output "$DIST/SHA256SUMS.asc" "$DIST/SHA256SUMS"
echo "$DIST/SHA256SUMS.asc"
packaging/deb/repo.sh "$key"
