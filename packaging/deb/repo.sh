#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# repo.sh KEY: makes an apt repository in dist/apt of the packages in dist, old ones
# among them, signed with the GnuPG key of that fingerprint. Whatever serves files
# can serve it; dist/apt/meshd.sources says to a host where it is.
set -euo pipefail
umask 022
cd "$(dirname "$(realpath "$0")")/../.."
DIST=$(realpath -m "${DIST:-dist}")
URL=${URL:-file:$DIST/apt}
if [[ $# -ne 1 || -z $1 ]]; then
	echo 'repo: which key signs it? make repo KEY=FINGERPRINT; gpg --list-secret-keys shows yours' >&2
	exit 2
fi
key=$1
if ! gpg --batch --list-secret-keys "$key" >/dev/null 2>&1; then
	echo "repo: gpg has no secret key $key" >&2
	exit 2
fi

repo=$(mktemp -d "$DIST/apt.XXXXXX")
trap 'rm -rf "$repo"' EXIT
chmod 0755 "$repo"
mkdir -p "$repo/pool" "$repo/dists/stable"
cp -p "$DIST"/meshd_*.deb "$repo/pool/"
cd "$repo"
for arch in amd64 arm64 armhf; do
	list=dists/stable/main/binary-$arch
	mkdir -p "$list"
	apt-ftparchive --arch "$arch" packages pool >"$list/Packages"
	gzip -9nk "$list/Packages"
done
apt-ftparchive \
	-o APT::FTPArchive::Release::Origin=meshd -o APT::FTPArchive::Release::Label=meshd \
	-o APT::FTPArchive::Release::Suite=stable -o APT::FTPArchive::Release::Codename=stable \
	-o APT::FTPArchive::Release::Architectures='amd64 arm64 armhf' -o APT::FTPArchive::Release::Components=main \
	release dists/stable >Release
mv Release dists/stable/
gpg --batch --yes --local-user "$key" --clearsign --output dists/stable/InRelease dists/stable/Release
gpg --batch --yes --local-user "$key" --armor --detach-sign --output dists/stable/Release.gpg dists/stable/Release
gpg --batch --yes --export --output meshd.gpg "$key"
cat >meshd.sources <<SOURCES
Types: deb
URIs: $URL
Suites: stable
Components: main
Signed-By: /etc/apt/keyrings/meshd.gpg
SOURCES

# The new one takes the old one's place at once.
rm -rf "$DIST/apt.old"
[[ ! -e $DIST/apt ]] || mv "$DIST/apt" "$DIST/apt.old"
mv "$repo" "$DIST/apt"
rm -rf "$DIST/apt.old"
echo "$DIST/apt"
