// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"fmt"
	"slices"
	"strings"

	"github.com/meshd/meshd/internal/mesh"
)

// ProblemParameter is the kind of problem for a kernel parameter that can't be set.
const ProblemParameter mesh.ProblemKind = "kernel-parameter"

// ParameterProblems returns a problem for each reason why kernel parameters are not as
// desired after a plan was applied. Without a device nothing else was applied either.
func ParameterProblems(observed, desired State) []mesh.Problem {
	if observed.Device == nil {
		return nil
	}
	var causes []string
	wrong := make(map[string][]Sysctl)
	for _, s := range missing(observed.Sysctls, desired.Sysctls) {
		cause := "another program sets them back, or the kernel refuses them"
		if err := observed.SysctlErrs[s.Key]; err != nil {
			cause = err.Error()
		}
		if wrong[cause] == nil {
			causes = append(causes, cause)
		}
		wrong[cause] = append(wrong[cause], s)
	}
	var out []mesh.Problem
	for _, cause := range causes {
		var settings, commands []string
		for _, s := range wrong[cause] {
			settings = append(settings, fmt.Sprintf("%s = %s (%s)", s.Key, s.Value, observed.value(s.Key)))
			commands = append(commands, fmt.Sprintf("%s=%s", s.Key, s.Value))
		}
		out = append(out, mesh.Problem{
			Kind: ProblemParameter,
			Text: fmt.Sprintf("the kernel parameters %s are not set: %s", strings.Join(settings, ", "), cause),
			Advice: "set them, and see what else sets them (/etc/sysctl.d, systemd-networkd): sysctl -w " + strings.Join(commands, " ") +
				"; where /proc/sys is read-only, as in a container, do so on the host of the container, or mount it writable",
		})
	}
	return out
}

// value describes the value of an observed parameter.
func (s State) value(key string) string {
	i := slices.IndexFunc(s.Sysctls, func(c Sysctl) bool { return c.Key == key })
	if i < 0 {
		return "missing"
	}
	return "now " + s.Sysctls[i].Value
}
