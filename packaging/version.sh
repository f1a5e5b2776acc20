#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Prints the version of this source. Its number is the newest heading of CHANGELOG.md, and
# is written nowhere else. For 0.1.0, as dpkg sorts them:
#
#   0.1.0~dev20261202183000.g1a2b3c4d5e6f  a commit before the tag v0.1.0, by its time
#   0.1.0                                  the commit with the tag, and source without git
#   0.1.0+dev20261209120000.g6f5e4d3c2b1a  a commit after it, until CHANGELOG.md has a new heading
#
# A commit whose files were changed has ".dirty" at the end, and is never the release.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."
number=$(sed -n '/^## /{s///p;q}' CHANGELOG.md)
if [[ ! $number =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]]; then
	echo "version: CHANGELOG.md: the first heading is \"## $number\"; write the number of the next release there, as in ## 0.1.0" >&2
	exit 1
fi
if [[ ! -e .git ]]; then
	echo "$number"
	exit
fi

commit=$(git rev-parse --verify HEAD)
tagged=$(git rev-parse --verify --quiet "refs/tags/v$number^{commit}" || true)
dirty=$(git diff --quiet HEAD || echo .dirty)
if [[ $commit == "$tagged" && -z $dirty ]]; then
	echo "$number"
	exit
fi
sign='~'
if [[ -n $tagged ]] && git merge-base --is-ancestor "$tagged" "$commit"; then
	sign=+
fi
echo "$number${sign}dev$(TZ=UTC git log -1 --date=format-local:%Y%m%d%H%M%S --format=%cd).g${commit:0:12}$dirty"
