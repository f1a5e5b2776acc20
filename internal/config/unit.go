// SPDX-License-Identifier: Apache-2.0

package config

import "strings"

// DropIn returns the text for `systemctl edit meshd` that allows the daemon to write to
// further directories (systemd.exec(5), ReadWritePaths=). The unit also starts if one of
// them is missing.
func DropIn(dirs ...string) string {
	return "[Service]\nReadWritePaths=-" + strings.Join(dirs, " -")
}
