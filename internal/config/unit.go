// SPDX-License-Identifier: Apache-2.0

package config

import "strings"

// DropIn is what `systemctl edit meshd` takes to let the daemon write to directories
// that its unit does not know of (systemd.exec(5), ReadWritePaths=). The unit starts
// also when one of them is missing.
func DropIn(dirs ...string) string {
	return "[Service]\nReadWritePaths=-" + strings.Join(dirs, " -")
}
