// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"strings"

	"rsc.io/qr"
)

// quietZone is the light border of a QR code, in modules (ISO/IEC 18004, section
// 5.3.8 asks for 4; readers are content with 2, and a terminal has few lines).
const quietZone = 2

// printQR prints a text as a QR code, with two rows of modules on each line. Light modules
// are printed, because most terminals are dark.
func printQR(w io.Writer, text string) error {
	code, err := qr.Encode(text, qr.L)
	if err != nil {
		return fmt.Errorf("the configuration has %d bytes, too many for a QR code; use --out instead", len(text))
	}
	light := func(x, y int) bool { return !code.Black(x, y) } // true also outside of the code
	blocks := map[[2]bool]string{{true, true}: "█", {true, false}: "▀", {false, true}: "▄", {false, false}: " "}
	var b strings.Builder
	for y := -quietZone; y < code.Size+quietZone; y += 2 {
		for x := -quietZone; x < code.Size+quietZone; x++ {
			b.WriteString(blocks[[2]bool{light(x, y), light(x, y+1)}])
		}
		b.WriteString("\n")
	}
	_, err = io.WriteString(w, b.String())
	return err
}
